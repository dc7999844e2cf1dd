// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {CheckpointHub} from "./CheckpointHub.sol";
import {PeerRegistry} from "./PeerRegistry.sol";

/// @notice What attestors found against a peer that two signatures cannot prove.
struct Verdict {
    bytes32 runId;
    uint64 epoch;
    address key; // the accused peer's
    uint16 bps; // part of the stake, in ten-thousandths
    bytes32 evidence; // hash of what the attestors published
}

/// @title Judgements by quorum, made slow, stoppable and small
/// @notice More than two thirds of the weight propose, a third can veto during the delay, and a peer loses at most
/// `mostBps` in one period: attestors who collude cannot take a stake. Nobody is rewarded.
abstract contract Verdicts is EIP712 {
    enum Stage {
        None,
        Open,
        Closed
    }

    struct Case {
        Stage stage;
        uint64 executableAt;
    }

    struct Period {
        uint64 endsAt;
        uint16 bps; // taken so far
    }

    bytes32 private constant VERDICT =
        keccak256("Verdict(bytes32 runId,uint64 epoch,address key,uint16 bps,bytes32 evidence)");
    bytes32 private constant VETO = keccak256("Veto(bytes32 verdict)");

    PeerRegistry public immutable registry;
    CheckpointHub public immutable hub;
    bytes32 public immutable runId;
    /// @notice Seconds between a verdict's proposal and its execution, and length of a period.
    uint64 public immutable verdictDelay;
    uint64 public immutable verdictPeriod;
    /// @notice Most that verdicts take of one peer in one period, in ten-thousandths.
    uint16 public immutable mostBps;

    mapping(bytes32 id => Case) public cases;
    mapping(address wallet => Period) public periods;

    event VerdictProposed(
        bytes32 indexed id, address indexed key, uint64 epoch, uint16 bps, bytes32 evidence, uint64 executableAt
    );
    event VerdictVetoed(bytes32 indexed id);
    event VerdictExecuted(bytes32 indexed id, address indexed wallet, uint128 amount);

    error WrongRunOf(bytes32 runId);
    error NoQuorumOf(uint256 signed, uint256 total);
    error OverVerdictCap(uint256 bps, uint16 most);
    error KnownVerdict(bytes32 id);
    error NoOpenVerdict(bytes32 id);
    error TooEarly(uint64 executableAt);
    error NobodyLiable(address key);

    /// @notice Open a case. `bitmap` and `rvs` are the hub's attestors' signatures over the verdict's digest here.
    function proposeVerdict(Verdict calldata verdict, uint64 bitmap, bytes32[] calldata rvs) external {
        if (verdict.runId != runId) revert WrongRunOf(verdict.runId);
        if (verdict.bps == 0 || verdict.bps > mostBps) revert OverVerdictCap(verdict.bps, mostBps);
        bytes32 id = verdictId(verdict);
        if (cases[id].stage != Stage.None) revert KnownVerdict(id);
        (uint256 signed, uint256 total) = hub.signedWeight(_hashTypedDataV4(id), bitmap, rvs);
        if (signed * 3 <= total * 2) revert NoQuorumOf(signed, total);
        uint64 executableAt = uint64(block.timestamp) + verdictDelay;
        cases[id] = Case(Stage.Open, executableAt);
        emit VerdictProposed(id, verdict.key, verdict.epoch, verdict.bps, verdict.evidence, executableAt);
    }

    /// @notice Close a case by a third of the weight, as long as it was not executed.
    function vetoVerdict(bytes32 id, uint64 bitmap, bytes32[] calldata rvs) external {
        if (cases[id].stage != Stage.Open) revert NoOpenVerdict(id);
        bytes32 digest = _hashTypedDataV4(keccak256(abi.encode(VETO, id)));
        (uint256 signed, uint256 total) = hub.signedWeight(digest, bitmap, rvs);
        if (signed * 3 < total) revert NoQuorumOf(signed, total);
        cases[id].stage = Stage.Closed;
        emit VerdictVetoed(id);
    }

    /// @notice Carry a verdict out; by anybody, after its delay.
    function executeVerdict(Verdict calldata verdict) external {
        bytes32 id = verdictId(verdict);
        Case memory found = cases[id];
        if (found.stage != Stage.Open) revert NoOpenVerdict(id);
        if (block.timestamp < found.executableAt) revert TooEarly(found.executableAt);
        address wallet = registry.liable(verdict.key);
        if (wallet == address(0)) revert NobodyLiable(verdict.key);
        cases[id].stage = Stage.Closed;
        _count(wallet, verdict.bps);
        emit VerdictExecuted(id, wallet, registry.slash(wallet, verdict.bps, address(0)));
    }

    /// @notice Name of a verdict: its EIP-712 hashStruct.
    function verdictId(Verdict calldata verdict) public pure returns (bytes32) {
        return keccak256(abi.encode(VERDICT, verdict));
    }

    function _count(address wallet, uint16 bps) private {
        Period memory period = periods[wallet];
        if (block.timestamp >= period.endsAt) period = Period(uint64(block.timestamp) + verdictPeriod, 0);
        uint256 sum = uint256(period.bps) + bps;
        if (sum > mostBps) revert OverVerdictCap(sum, mostBps);
        period.bps = uint16(sum);
        periods[wallet] = period;
    }
}
