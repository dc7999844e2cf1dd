// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC20Votes} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Votes.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";

/// @title What peers stake and earn
/// @notice ERC-20 with permit (ERC-2612) and votes (ERC-5805) under a cap; the reward pool alone mints.
contract Token is ERC20, ERC20Permit, ERC20Votes {
    /// @notice The one account that may mint; it is deployed after the token, at an address known before.
    address public immutable pool;
    /// @notice Most units that exist at any time.
    uint256 public immutable cap;

    error NotThePool(address caller);
    error CapTooLarge(uint256 cap);

    constructor(string memory name_, string memory symbol_, uint256 cap_, address pool_)
        ERC20(name_, symbol_)
        ERC20Permit(name_)
    {
        // Rewards are counted in 128 bits everywhere else.
        if (cap_ > type(uint128).max) revert CapTooLarge(cap_);
        cap = cap_;
        pool = pool_;
    }

    /// @notice Create `amount` units. Reverts with ERC20ExceededSafeSupply over the cap.
    function mint(address to, uint256 amount) external {
        if (msg.sender != pool) revert NotThePool(msg.sender);
        _mint(to, amount);
    }

    /// @notice Destroy units of one's own.
    function burn(uint256 amount) external {
        _burn(msg.sender, amount);
    }

    /// @notice Destroy units of an account that allowed it.
    function burnFrom(address account, uint256 amount) external {
        _spendAllowance(account, msg.sender, amount);
        _burn(account, amount);
    }

    /// @notice Votes count time, not blocks (ERC-6372): block numbers mean another thing on every rollup.
    function clock() public view override returns (uint48) {
        return uint48(block.timestamp);
    }

    /// @notice Tells wallets so (ERC-6372).
    // solhint-disable-next-line func-name-mixedcase
    function CLOCK_MODE() public pure override returns (string memory) {
        return "mode=timestamp";
    }

    /// @notice Whom an account lets vote for it. The pool has no way to name anybody: not to look saves each claim 2,100 gas.
    function delegates(address account) public view override returns (address) {
        return account == pool ? address(0) : super.delegates(account);
    }

    function nonces(address owner) public view override(ERC20Permit, Nonces) returns (uint256) {
        return super.nonces(owner);
    }

    function _maxSupply() internal view override returns (uint256) {
        return cap;
    }

    function _update(address from, address to, uint256 amount) internal override(ERC20, ERC20Votes) {
        super._update(from, to, amount);
    }
}
