// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Signatures} from "./Signatures.sol";
import {Token} from "./Token.sol";

/// @title Who stakes for which peer
/// @notice A wallet binds the libp2p key of its peer by that key's signature, stakes, and is paid. A stake leaves after
/// `unbondDelay` and can be slashed until then.
/// @dev State holds what contracts read. Public keys and metadata are in the events: x makes the key address anew, so
/// nobody has to believe the log.
contract PeerRegistry {
    using SafeERC20 for Token;
    using SafeCast for uint256;

    /// @dev One word. 88 bits hold 309 million tokens.
    struct Peer {
        address key;
        uint88 stake;
        bool jailed;
    }

    /// @dev One word. A key belongs to one wallet for ever, also after it was rotated away.
    struct Owner {
        address wallet;
        uint64 liableUntil; // of a key that was rotated away; 0 for one in use
    }

    struct Unbonding {
        uint128 amount;
        uint64 unlockAt;
    }

    uint256 private constant BPS = 10_000;
    /// @notice A slash of at least this part of the stake jails: no more stake, no other key.
    uint16 public constant JAIL_BPS = 5_000;

    Token public immutable token;
    address public immutable slashing;
    /// @notice Seconds between a request and the withdrawal.
    uint64 public immutable unbondDelay;
    /// @notice Slashed units that wait to be burned.
    uint256 public burnable;

    mapping(address wallet => Peer) private _peers;
    mapping(address key => Owner) private _owners;
    mapping(address wallet => Unbonding) private _unbondings;

    event Enrolled(
        address indexed wallet, address indexed key, bytes32 x, uint8 prefix, uint128 stake, bytes32 metadata
    );
    event StakeAdded(address indexed wallet, uint128 amount, uint128 stake);
    event UnbondRequested(address indexed wallet, uint128 amount, uint64 unlockAt);
    event Withdrawn(address indexed wallet, uint128 amount);
    event KeyRotated(
        address indexed wallet, address indexed oldKey, address indexed newKey, bytes32 x, uint8 prefix
    );
    event MetadataSet(address indexed wallet, bytes32 metadata);
    event Slashed(
        address indexed wallet, address indexed key, uint128 amount, address indexed reporter, uint128 reward
    );
    event Burned(uint256 amount);

    error AlreadyEnrolled(address wallet);
    error NotEnrolled(address wallet);
    error KeyTaken(address key);
    error BadBinding(address key, address signer);
    error IsJailed(address wallet);
    error TooMuch(uint128 amount, uint128 most);
    error NothingToDo();
    error Locked(uint64 unlockAt);
    error NotSlashing(address caller);

    constructor(Token token_, address slashing_, uint64 unbondDelay_) {
        token = token_;
        slashing = slashing_;
        unbondDelay = unbondDelay_;
    }

    /// @notice Bind the key (x, y) to the sender by the key's signature (r, vs) and stake `stake` units of the sender's.
    /// A stake of zero is fine: a newcomer has earned nothing yet, and must be able to say who is to be paid.
    function enrol(bytes32 x, bytes32 y, bytes32 r, bytes32 vs, uint128 stake, bytes32 metadata) external {
        if (_peers[msg.sender].key != address(0)) revert AlreadyEnrolled(msg.sender);
        address key = _bind(x, y, r, vs);
        _peers[msg.sender] = Peer(key, _toStake(stake), false);
        emit Enrolled(msg.sender, key, x, Signatures.prefixOf(y), stake, metadata);
        if (stake != 0) token.safeTransferFrom(msg.sender, address(this), stake);
    }

    function addStake(uint128 amount) external {
        Peer memory found = _enrolled();
        if (found.jailed) revert IsJailed(msg.sender);
        if (amount == 0) revert NothingToDo();
        uint128 stake = found.stake + amount;
        _peers[msg.sender].stake = _toStake(stake);
        emit StakeAdded(msg.sender, amount, stake);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @notice Start to take `amount` out. With an earlier request still open both wait for the later time.
    function requestUnbond(uint128 amount) external {
        Peer memory found = _enrolled();
        if (amount == 0) revert NothingToDo();
        if (amount > found.stake) revert TooMuch(amount, found.stake);
        Unbonding storage open = _unbondings[msg.sender];
        uint64 unlockAt = uint64(block.timestamp) + unbondDelay;
        _peers[msg.sender].stake = found.stake - uint88(amount);
        (open.amount, open.unlockAt) = (open.amount + amount, unlockAt);
        emit UnbondRequested(msg.sender, amount, unlockAt);
    }

    /// @notice Pay out what has been unbonding for long enough.
    function withdraw() external {
        Unbonding memory open = _unbondings[msg.sender];
        if (open.amount == 0) revert NothingToDo();
        if (block.timestamp < open.unlockAt) revert Locked(open.unlockAt);
        delete _unbondings[msg.sender];
        emit Withdrawn(msg.sender, open.amount);
        token.safeTransfer(msg.sender, open.amount);
    }

    /// @notice Bind another key. What the old one signed stays punishable for `unbondDelay`, what it earned stays payable.
    function rotateKey(bytes32 x, bytes32 y, bytes32 r, bytes32 vs) external {
        Peer memory found = _enrolled();
        if (found.jailed) revert IsJailed(msg.sender);
        address key = _bind(x, y, r, vs);
        _owners[found.key].liableUntil = uint64(block.timestamp) + unbondDelay;
        _peers[msg.sender].key = key;
        emit KeyRotated(msg.sender, found.key, key, x, Signatures.prefixOf(y));
    }

    function setMetadata(bytes32 metadata) external {
        _enrolled();
        emit MetadataSet(msg.sender, metadata);
    }

    /// @notice Take `bps` of all that the wallet has here, also of what is unbonding; a tenth goes to the reporter.
    /// @dev The rest waits for {burn}: to burn writes the history of the supply, 30,000 gas that nobody owes here.
    function slash(address wallet, uint16 bps, address reporter) external returns (uint128 amount) {
        if (msg.sender != slashing) revert NotSlashing(msg.sender);
        if (bps > BPS) revert TooMuch(bps, uint128(BPS));
        Peer memory found = _peers[wallet];
        if (found.key == address(0)) revert NotEnrolled(wallet);
        uint88 fromStake = uint88(uint256(found.stake) * bps / BPS);
        uint128 fromUnbonding = uint128(uint256(_unbondings[wallet].amount) * bps / BPS);
        _peers[wallet] = Peer(found.key, found.stake - fromStake, found.jailed || bps >= JAIL_BPS);
        if (fromUnbonding != 0) _unbondings[wallet].amount -= fromUnbonding;
        amount = fromStake + fromUnbonding;
        uint128 reward = reporter == address(0) ? 0 : amount / 10;
        if (amount != 0) burnable += amount - reward;
        emit Slashed(wallet, found.key, amount, reporter, reward);
        if (reward != 0) token.safeTransfer(reporter, reward);
    }

    /// @notice Burn what was slashed; by anybody.
    function burn() external {
        uint256 amount = burnable;
        if (amount == 0) revert NothingToDo();
        burnable = 0;
        emit Burned(amount);
        token.burn(amount);
    }

    /// @notice Whom to pay for what `key` earned; zero when nobody enrolled it. Also of a key that was rotated away.
    function walletOf(address key) external view returns (address) {
        return _owners[key].wallet;
    }

    /// @notice Whose stake answers for what `key` signed; zero when nobody's does, or not any more.
    function liable(address key) external view returns (address) {
        Owner memory owner = _owners[key];
        return owner.liableUntil == 0 || block.timestamp <= owner.liableUntil ? owner.wallet : address(0);
    }

    function peer(address wallet)
        external
        view
        returns (address key, uint128 stake, uint128 unbonding, uint64 unlockAt, bool jailed)
    {
        Peer memory found = _peers[wallet];
        Unbonding memory open = _unbondings[wallet];
        return (found.key, found.stake, open.amount, open.unlockAt, found.jailed);
    }

    /// @notice What a peer's key signs to be bound to `wallet`. SHA-256, as all that libp2p keys sign.
    function bindingDigest(address wallet) public view returns (bytes32) {
        return sha256(abi.encodePacked("murmuration/enrol/1", block.chainid, address(this), wallet));
    }

    function _bind(bytes32 x, bytes32 y, bytes32 r, bytes32 vs) private returns (address key) {
        key = Signatures.addressOf(x, y);
        address signer = Signatures.recover(bindingDigest(msg.sender), r, vs);
        if (signer == address(0) || signer != key) revert BadBinding(key, signer);
        if (_owners[key].wallet != address(0)) revert KeyTaken(key);
        _owners[key].wallet = msg.sender;
    }

    function _enrolled() private view returns (Peer memory found) {
        found = _peers[msg.sender];
        if (found.key == address(0)) revert NotEnrolled(msg.sender);
    }

    function _toStake(uint256 amount) private pure returns (uint88) {
        return amount.toUint88();
    }
}
