// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {Checkpoint, CheckpointHash} from "./Checkpoint.sol";
import {CheckpointHub} from "./CheckpointHub.sol";
import {Contradiction} from "./Contradiction.sol";
import {Envelope} from "./Envelope.sol";
import {PeerRegistry} from "./PeerRegistry.sol";
import {Signatures} from "./Signatures.sol";
import {Verdicts} from "./Verdicts.sol";

/// @title Loss of stake
/// @notice Two signatures of one key that contradict each other are judged here and at once; an honest peer makes no
/// such pair. Whoever reports it first gets a tenth. All other findings go the slow way of {Verdicts}.
contract Slashing is Verdicts {
    using CheckpointHash for Checkpoint;

    /// @notice Kind of a proven equivocation over checkpoints; over messages the kind is the tag of both.
    uint8 public constant CHECKPOINTS = 0;

    /// @notice Part of the stake that an equivocation costs, in ten-thousandths.
    uint16 public immutable equivocationBps;
    /// @notice Offences that were punished. What was said there a third time is the same offence.
    mapping(bytes32 evidence => bool) public punished;

    event EquivocationProven(address indexed wallet, address indexed key, bytes32 indexed evidence, uint8 kind);

    error WiredWrong();
    error NotOnePlace();
    error NotOneSigner(address first, address second);
    error BadSignature(uint256 index);
    error AlreadyPunished(bytes32 evidence);

    constructor(
        PeerRegistry registry_,
        CheckpointHub hub_,
        bytes32 runId_,
        uint16 equivocationBps_,
        uint16 mostBps_,
        uint64 verdictDelay_,
        uint64 verdictPeriod_
    ) EIP712("Murmuration", "1") {
        if (registry_.slashing() != address(this) || hub_.runId() != runId_) revert WiredWrong();
        if (equivocationBps_ > 10_000 || mostBps_ > 10_000) revert WiredWrong();
        (registry, hub, runId) = (registry_, hub_, runId_);
        (equivocationBps, mostBps) = (equivocationBps_, mostBps_);
        (verdictDelay, verdictPeriod) = (verdictDelay_, verdictPeriod_);
    }

    /// @notice Two checkpoints of one run, fork and epoch, signed by one key.
    /// @param rvs both compact signatures, the first header's first
    function reportCheckpoints(Checkpoint calldata first, Checkpoint calldata second, bytes32[4] calldata rvs) external {
        bool together = first.runId == runId && second.runId == runId && first.epoch == second.epoch;
        (bytes32 one, bytes32 other) = (first.hash(), second.hash());
        if (!together || first.forkNonce != second.forkNonce || one == other) revert NotOnePlace();
        bytes32 domain = hub.DOMAIN_SEPARATOR();
        address key = Signatures.recover(MessageHashUtils.toTypedDataHash(domain, one), rvs[0], rvs[1]);
        address again = Signatures.recover(MessageHashUtils.toTypedDataHash(domain, other), rvs[2], rvs[3]);
        if (key == address(0) || key != again) revert NotOneSigner(key, again);
        _punish(key, CHECKPOINTS, keccak256(abi.encode(first.forkNonce, first.epoch)));
    }

    /// @notice Two averaging messages of one round, signed by the key (x, y), that {Contradiction} says exclude each other.
    /// @param rs both signatures (r, s), the first body's first
    function reportMessages(
        bytes32 x,
        bytes32 y,
        uint64 round,
        bytes calldata bodyA,
        bytes calldata bodyB,
        bytes32[4] calldata rs
    ) external {
        (uint8 tag, bytes32 place) = Contradiction.check(bodyA, bodyB);
        address key = Signatures.addressOf(x, y);
        if (!Signatures.isBy(key, Envelope.digest(runId, round, x, y, bodyA), rs[0], rs[1])) revert BadSignature(0);
        if (!Signatures.isBy(key, Envelope.digest(runId, round, x, y, bodyB), rs[2], rs[3])) revert BadSignature(1);
        _punish(key, tag, keccak256(abi.encode(round, place)));
    }

    /// @dev The offence is named by who, what and where, not by the two messages: a third one makes no second offence.
    function _punish(address key, uint8 kind, bytes32 place) private {
        bytes32 evidence = keccak256(abi.encode(key, kind, place));
        if (punished[evidence]) revert AlreadyPunished(evidence);
        address wallet = registry.liable(key);
        if (wallet == address(0)) revert NobodyLiable(key);
        punished[evidence] = true;
        emit EquivocationProven(wallet, key, evidence, kind);
        registry.slash(wallet, equivocationBps, msg.sender);
    }
}
