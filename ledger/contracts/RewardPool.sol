// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {CheckpointHub} from "./CheckpointHub.sol";
import {PeerRegistry} from "./PeerRegistry.sol";
import {Token} from "./Token.sol";

/// @title What is paid, to whom, and out of what
/// @notice Leaves of a tally are cumulative: a claim pays what the leaf says beyond what was paid before, so that a late
/// claim loses nothing. Nothing is ever paid beyond what an active checkpoint promised, nor promised beyond what is funded.
/// @dev The pool holds nothing but what it minted for claims: fees are burned when they are paid and minted again when they
/// are claimed. What an active checkpoint promised and nobody claimed is thus exactly its balance and what it may mint.
contract RewardPool {
    using SafeERC20 for Token;

    /// @notice Parts of a usage fee, in ten-thousandths of it.
    struct Splits {
        uint16 contributors;
        uint16 dataProviders;
        uint16 attestors;
        uint16 treasury;
    }

    uint256 private constant BPS = 10_000;

    Token public immutable token;
    CheckpointHub public immutable hub;
    PeerRegistry public immutable registry;
    address public immutable treasury;
    address public immutable dataProviders;
    /// @notice Units that each epoch may pay, besides fees.
    uint128 public immutable emission;
    /// @notice Most that all epochs together may mint: the cap without the genesis allocation.
    uint128 public immutable mostEmitted;

    Splits public splits;
    /// @notice Usage fees for contributors, since the founding.
    uint128 public fees;
    /// @notice Units minted for claims, since the founding: never more than an active checkpoint promised.
    uint128 public minted;
    /// @notice Usage fees that wait to be paid to the attestors.
    uint128 public attestorsDue;
    /// @notice What was paid for an account's leaf, since the founding.
    mapping(address account => uint256) public claimed;

    event Claimed(
        address indexed account, address indexed recipient, uint256 amount, uint256 cumulative, uint64 epoch
    );
    event UsagePaid(
        address indexed payer,
        bytes32 indexed model,
        uint128 amount,
        uint128 contributors,
        uint128 dataProviders,
        uint128 attestors,
        uint128 treasury
    );
    event AttestorsPaid(uint128 amount);

    error WiredWrong();
    error BadSplits(uint256 sum);
    error BadGenesis(uint256 accounts, uint256 amounts);
    error BadProof();
    error NothingToClaim(uint256 claimed);
    error OverPromised(uint256 amount, uint256 left);
    error NothingToDo();

    constructor(
        Token token_,
        CheckpointHub hub_,
        PeerRegistry registry_,
        address treasury_,
        address dataProviders_,
        uint128 emission_,
        Splits memory splits_,
        address[] memory genesisAccounts,
        uint256[] memory genesisAmounts
    ) {
        bool wired = token_.pool() == address(this) && address(hub_.pool()) == address(this);
        if (!wired || address(registry_.token()) != address(token_)) revert WiredWrong();
        uint256 sum = uint256(splits_.contributors) + splits_.dataProviders + splits_.attestors + splits_.treasury;
        if (sum != BPS) revert BadSplits(sum);
        (token, hub, registry, treasury, dataProviders) = (token_, hub_, registry_, treasury_, dataProviders_);
        (emission, splits) = (emission_, splits_);
        mostEmitted = uint128(token_.cap() - _genesis(token_, genesisAccounts, genesisAmounts));
    }

    /// @notice Pay what `account` earned up to `epoch`; by anybody. Pays the wallet that enrolled the account as its key,
    /// else the account itself.
    function claim(uint64 epoch, address account, uint256 cumulative, bytes32[] calldata proof) external {
        (bytes32 root, uint128 promised) = hub.active(epoch);
        // Hashed twice, so that no inner node of the tree passes for a leaf.
        bytes32 leaf = keccak256(abi.encode(keccak256(abi.encode(account, cumulative))));
        if (!MerkleProof.verifyCalldata(proof, root, leaf)) revert BadProof();
        uint256 before = claimed[account];
        if (cumulative <= before) revert NothingToClaim(before);
        uint256 amount = cumulative - before;
        claimed[account] = cumulative;
        _provide(amount, promised);
        address recipient = _recipient(account);
        emit Claimed(account, recipient, amount, cumulative, epoch);
        token.safeTransfer(recipient, amount);
    }

    /// @notice Pay for the use of a model. The contributors' part raises what later checkpoints may pay.
    function payUsage(bytes32 model, uint128 amount) external {
        if (amount == 0) revert NothingToDo();
        Splits memory parts = splits;
        uint128 toProviders = _part(amount, parts.dataProviders);
        uint128 toAttestors = _part(amount, parts.attestors);
        uint128 toTreasury = _part(amount, parts.treasury);
        uint128 toContributors = amount - toProviders - toAttestors - toTreasury;
        fees += toContributors;
        attestorsDue += toAttestors;
        emit UsagePaid(msg.sender, model, amount, toContributors, toProviders, toAttestors, toTreasury);
        token.burnFrom(msg.sender, toContributors + toAttestors);
        token.safeTransferFrom(msg.sender, dataProviders, toProviders);
        token.safeTransferFrom(msg.sender, treasury, toTreasury);
    }

    /// @notice Pay the attestors of now, by weight, what usage brought them; by anybody. What does not divide waits.
    function payAttestors() external {
        (address[] memory attestors, uint16[] memory weights) = hub.attestors();
        uint256 total = 0;
        for (uint256 i = 0; i < weights.length; ++i) {
            total += weights[i];
        }
        uint256 share = attestorsDue / total;
        if (share == 0) revert NothingToDo();
        attestorsDue -= uint128(share * total);
        emit AttestorsPaid(uint128(share * total));
        for (uint256 i = 0; i < attestors.length; ++i) {
            token.mint(_recipient(attestors[i]), share * weights[i]);
        }
    }

    /// @notice The most that `cumulativeReward` of that epoch may be.
    function funded(uint64 epoch) external view returns (uint128) {
        uint256 emission_ = uint256(epoch) * emission;
        return fees + (emission_ < mostEmitted ? uint128(emission_) : mostEmitted);
    }

    /// @dev When the balance does not suffice, mints what the checkpoint promised and was not minted yet, for all who come
    /// after too. The hub has seen to it that this is funded.
    function _provide(uint256 amount, uint128 promised) private {
        uint256 balance = token.balanceOf(address(this));
        if (balance >= amount) return;
        uint256 more = promised > minted ? promised - minted : 0;
        if (balance + more < amount) revert OverPromised(amount, balance + more);
        minted = promised;
        token.mint(address(this), more);
    }

    function _recipient(address account) private view returns (address) {
        address wallet = registry.walletOf(account);
        return wallet == address(0) ? account : wallet;
    }

    function _genesis(Token token_, address[] memory accounts, uint256[] memory amounts)
        private
        returns (uint256 total)
    {
        if (accounts.length != amounts.length) revert BadGenesis(accounts.length, amounts.length);
        for (uint256 i = 0; i < accounts.length; ++i) {
            total += amounts[i];
            token_.mint(accounts[i], amounts[i]);
        }
    }

    function _part(uint128 amount, uint16 bps) private pure returns (uint128) {
        return uint128(uint256(amount) * bps / BPS);
    }
}
