// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {AttestorSet} from "./AttestorSet.sol";
import {Checkpoint, CheckpointHash} from "./Checkpoint.sol";

/// @notice The part of the reward pool that bounds what a checkpoint may promise.
interface IFunding {
    function funded(uint64 epoch) external view returns (uint128);
}

/// @title The chain of checkpoints of one run
/// @notice Anybody sends a checkpoint that more than two thirds of the attestors' weight signed. It becomes active when
/// its window has passed, without a further transaction; until then a quorum may roll it back.
/// @dev State is a ring of 64 slots, whatever the number of peers and epochs.
contract CheckpointHub is EIP712 {
    using CheckpointHash for Checkpoint;

    struct Slot {
        bytes32 hash;
        bytes32 tallyRoot;
        uint40 proposedAt;
        uint40 epoch;
        uint48 lastRound;
        uint128 cumulativeReward;
    }

    /// @dev One word: a checkpoint reads and writes it once.
    struct Head {
        uint48 epoch;
        uint48 forkNonce;
        address attestors; // account whose code is the set
    }

    uint256 private constant RING = 64;

    bytes32 public immutable runId;
    /// @notice Seconds between a checkpoint's proposal and its being active.
    uint64 public immutable window;
    /// @notice Least seconds between two proposals.
    uint64 public immutable minInterval;
    IFunding public immutable pool;
    /// @notice What the next rotation signs.
    uint64 public rotationNonce;

    Slot[RING] private _ring;
    Head private _head;

    event CheckpointProposed(
        uint64 indexed epoch, bytes32 indexed hash, Checkpoint header, uint64 bitmap, uint64 activeAt
    );
    event CheckpointRolledBack(uint64 indexed epoch, uint64 forkNonce);
    event AttestorsRotated(uint64 nonce, address[] attestors, uint16[] weights);

    error WindowTooLong(uint64 window, uint64 most);
    error WrongRun(bytes32 runId);
    error WrongFork(uint64 expected);
    error WrongEpoch(uint64 expected);
    error WrongParent(bytes32 expected);
    error WrongRounds(uint64 expectedFirst);
    error TooSoon(uint64 earliest);
    error RewardFalls(uint128 before);
    error NotFunded(uint128 most);
    error NoQuorum(uint256 signed, uint256 total);
    error AlreadyActive(uint64 epoch);
    error NotActive(uint64 epoch);

    constructor(
        bytes32 runId_,
        address[] memory attestors_,
        uint16[] memory weights,
        uint64 window_,
        uint64 minInterval_,
        IFunding pool_
    ) EIP712("Murmuration", "1") {
        // Else the ring could overwrite a slot that is not active yet, or the one before it that a rollback returns to.
        uint256 most = (RING - 2) * uint256(minInterval_);
        if (window_ > most) revert WindowTooLong(window_, uint64(most));
        runId = runId_;
        window = window_;
        minInterval = minInterval_;
        pool = pool_;
        _setAttestors(attestors_, weights);
    }

    /// @notice Append a checkpoint. `bitmap` and `rvs` as in {AttestorSet-signedWeight}.
    function propose(Checkpoint calldata header, uint64 bitmap, bytes32[] calldata rvs) external {
        Head memory top = _head;
        _checkPlace(header, top);
        bytes32 hash = header.hash();
        _requireQuorum(top.attestors, _hashTypedDataV4(hash), bitmap, rvs);
        _ring[header.epoch % RING] = Slot({
            hash: hash,
            tallyRoot: header.tallyRoot,
            proposedAt: uint40(block.timestamp),
            epoch: uint40(header.epoch),
            lastRound: uint48(header.lastRound),
            cumulativeReward: header.cumulativeReward
        });
        _head.epoch = uint48(header.epoch);
        emit CheckpointProposed(header.epoch, hash, header, bitmap, uint64(block.timestamp) + window);
    }

    /// @notice Remove `epoch` and all later ones, none of which is active. The next ones sign another fork nonce, so that
    /// to sign an epoch again after an agreed rollback is no equivocation. `epoch` may be the next one, too: nothing goes,
    /// but attestors whose signatures for it are divided among headers, none with a quorum, can sign it anew.
    function rollback(uint64 epoch, uint64 bitmap, bytes32[] calldata rvs) external {
        Head memory top = _head;
        if (epoch == 0 || epoch > uint64(top.epoch) + 1) revert WrongEpoch(uint64(top.epoch) + 1);
        if (isActive(epoch)) revert AlreadyActive(epoch);
        bytes32 hash = keccak256(abi.encode(CheckpointHash.ROLLBACK, runId, uint64(top.forkNonce), epoch));
        _requireQuorum(top.attestors, _hashTypedDataV4(hash), bitmap, rvs);
        // None of them is active, and the window spans less than the ring: top most 62.
        for (uint256 gone = epoch; gone <= top.epoch; ++gone) {
            delete _ring[gone % RING];
        }
        _head.epoch = uint48(epoch - 1);
        _head.forkNonce = top.forkNonce + 1;
        emit CheckpointRolledBack(epoch, top.forkNonce + 1);
    }

    /// @notice Replace the attestors; those of now sign for those to come.
    function rotate(address[] calldata attestors_, uint16[] calldata weights, uint64 bitmap, bytes32[] calldata rvs)
        external
    {
        bytes32 set = keccak256(abi.encode(attestors_, weights));
        bytes32 hash = keccak256(abi.encode(CheckpointHash.ROTATION, runId, rotationNonce, set));
        _requireQuorum(_head.attestors, _hashTypedDataV4(hash), bitmap, rvs);
        _setAttestors(attestors_, weights);
    }

    /// @notice The last checkpoint; epoch 0 with zeros before the first.
    function head() external view returns (uint64 epoch, bytes32 hash, uint64 lastRound, uint64 forkNonce) {
        Head memory top = _head;
        Slot storage last = _ring[top.epoch % RING];
        return (top.epoch, last.hash, last.lastRound, top.forkNonce);
    }

    /// @notice A checkpoint that the ring still holds; zeros when it does not.
    function slot(uint64 epoch)
        external
        view
        returns (bytes32 hash, bytes32 tallyRoot, uint64 epoch_, uint64 activeAt, uint128 cumulativeReward)
    {
        Slot memory found = _ring[epoch % RING];
        if (epoch == 0 || found.epoch != epoch) return (0, 0, 0, 0, 0);
        return (found.hash, found.tallyRoot, found.epoch, found.proposedAt + window, found.cumulativeReward);
    }

    /// @notice Tally and promise of an active checkpoint that the ring still holds. Reverts with NotActive otherwise.
    function active(uint64 epoch) external view returns (bytes32 tallyRoot, uint128 cumulativeReward) {
        Slot storage found = _ring[epoch % RING];
        if (!_isActive(found, epoch)) revert NotActive(epoch);
        return (found.tallyRoot, found.cumulativeReward);
    }

    /// @notice Whether the ring holds the checkpoint and its window has passed.
    function isActive(uint64 epoch) public view returns (bool) {
        return _isActive(_ring[epoch % RING], epoch);
    }

    function attestors() external view returns (address[] memory, uint16[] memory) {
        return AttestorSet.read(_head.attestors);
    }

    /// @notice Weight that signed `digest`, and weight of all. Reverts when a signature is not its attestor's.
    function signedWeight(bytes32 digest, uint64 bitmap, bytes32[] calldata rvs)
        external
        view
        returns (uint256 signed, uint256 total)
    {
        return AttestorSet.signedWeight(_head.attestors, digest, bitmap, rvs);
    }

    /// @notice EIP-712 domain separator of what attestors sign for this hub.
    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    function _checkPlace(Checkpoint calldata header, Head memory top) private view {
        if (header.runId != runId) revert WrongRun(header.runId);
        if (header.forkNonce != top.forkNonce) revert WrongFork(top.forkNonce);
        if (header.epoch != uint64(top.epoch) + 1) revert WrongEpoch(uint64(top.epoch) + 1);
        Slot storage last = _ring[top.epoch % RING];
        if (header.parent != last.hash) revert WrongParent(last.hash);
        (uint40 proposedAt, uint48 lastRound, uint128 before) = (last.proposedAt, last.lastRound, last.cumulativeReward);
        bool adjoins = header.firstRound == uint64(lastRound) + 1 && header.lastRound >= header.firstRound;
        if (!adjoins || header.lastRound > type(uint48).max) revert WrongRounds(uint64(lastRound) + 1);
        if (block.timestamp < proposedAt + minInterval) revert TooSoon(proposedAt + minInterval);
        if (header.cumulativeReward < before) revert RewardFalls(before);
        uint128 most = pool.funded(header.epoch);
        if (header.cumulativeReward > most) revert NotFunded(most);
    }

    function _requireQuorum(address set, bytes32 digest, uint64 bitmap, bytes32[] calldata rvs) private view {
        (uint256 signed, uint256 total) = AttestorSet.signedWeight(set, digest, bitmap, rvs);
        if (signed * 3 <= total * 2) revert NoQuorum(signed, total);
    }

    function _setAttestors(address[] memory attestors_, uint16[] memory weights) private {
        _head.attestors = AttestorSet.write(attestors_, weights);
        emit AttestorsRotated(rotationNonce++, attestors_, weights);
    }

    function _isActive(Slot storage found, uint64 epoch) private view returns (bool) {
        return epoch != 0 && found.epoch == epoch && block.timestamp >= found.proposedAt + window;
    }
}
