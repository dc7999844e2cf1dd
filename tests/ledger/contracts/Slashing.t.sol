// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Checkpoint} from "src/Checkpoint.sol";
import {Slashing} from "src/Slashing.sol";
import {Verdict, Verdicts} from "src/Verdicts.sol";
import {check, vm} from "./Vm.sol";
import {World} from "./World.sol";

contract SlashingTest is World {
    address private constant WALLET = address(0xA11CE);
    address private constant REPORTER = address(0xB0B);
    uint256 private constant KEY = 77;

    function setUp() public {
        _start();
        _fund(WALLET, 1000);
        _enrol(WALLET, KEY, 1000);
    }

    function _refuse(Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs, bytes4 refusal) private {
        vm.expectPartialRevert(refusal);
        slashing.reportCheckpoints(one, other, rvs);
    }

    function test_two_checkpoints_of_one_epoch_cost_half() public {
        (Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs) = _lie(KEY, 1);
        vm.prank(REPORTER);
        slashing.reportCheckpoints(one, other, rvs);
        (uint128 stake,) = _stake(WALLET);
        check(stake == 500 && token.balanceOf(REPORTER) == 50 && registry.burnable() == 450, "slashed");
    }

    function test_one_offence_is_punished_once() public {
        (Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs) = _lie(KEY, 1);
        slashing.reportCheckpoints(one, other, rvs);
        _refuse(one, other, rvs, Slashing.AlreadyPunished.selector);
        bytes32[4] memory swapped = [rvs[2], rvs[3], rvs[0], rvs[1]];
        _refuse(other, one, swapped, Slashing.AlreadyPunished.selector);
        // A third header of the same epoch makes new pairs, but no new offence.
        Checkpoint memory third = _next();
        (third.epoch, third.dataRoot) = (1, keccak256("a third"));
        (swapped[2], swapped[3]) = _compact(KEY, _digest(third));
        _refuse(other, third, swapped, Slashing.AlreadyPunished.selector);
        // Another epoch is another offence.
        (one, other, rvs) = _lie(KEY, 2);
        slashing.reportCheckpoints(one, other, rvs);
        (uint128 stake,) = _stake(WALLET);
        check(stake == 250, "slashed twice");
    }

    function test_honest_pairs_are_no_evidence() public {
        (Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs) = _lie(KEY, 1);
        bytes32[4] memory equal = [rvs[0], rvs[1], rvs[0], rvs[1]];
        _refuse(one, one, equal, Slashing.NotOnePlace.selector);
        other.forkNonce = 1; // signed again after a rollback
        (rvs[2], rvs[3]) = _compact(KEY, _digest(other));
        _refuse(one, other, rvs, Slashing.NotOnePlace.selector);
        (other.forkNonce, other.epoch) = (0, 2);
        (rvs[2], rvs[3]) = _compact(KEY, _digest(other));
        _refuse(one, other, rvs, Slashing.NotOnePlace.selector);
        (other.epoch, one.runId, other.runId) = (1, keccak256("another"), keccak256("another"));
        (rvs[0], rvs[1]) = _compact(KEY, _digest(one));
        (rvs[2], rvs[3]) = _compact(KEY, _digest(other));
        _refuse(one, other, rvs, Slashing.NotOnePlace.selector);
    }

    function test_both_signatures_are_of_one_known_key() public {
        (Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs) = _lie(KEY, 1);
        bytes32[4] memory mixed = rvs;
        (mixed[2], mixed[3]) = _compact(KEY + 1, _digest(other));
        _refuse(one, other, mixed, Slashing.NotOneSigner.selector);
        // Both recover to nobody.
        mixed = [bytes32(0), bytes32(uint256(1)), bytes32(0), bytes32(uint256(1))];
        _refuse(one, other, mixed, Slashing.NotOneSigner.selector);
        (one, other, rvs) = _lie(KEY + 1, 1);
        _refuse(one, other, rvs, Verdicts.NobodyLiable.selector);
        // A signature for this contract instead of the hub.
        (one, other, rvs) = _lie(KEY, 1);
        (rvs[2], rvs[3]) = _compact(KEY, _digest(address(slashing), _hash(other)));
        _refuse(one, other, rvs, Slashing.NotOneSigner.selector);
        vm.chainId(1);
        (rvs[2], rvs[3]) = (rvs[0], rvs[1]);
        _refuse(one, other, rvs, Slashing.NotOneSigner.selector);
    }

    function test_a_rotated_key_and_an_unbonding_stake_still_answer() public {
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(WALLET, KEY + 1);
        vm.startPrank(WALLET);
        registry.requestUnbond(1000);
        registry.rotateKey(x, y, r, vs);
        vm.stopPrank();
        vm.warp(block.timestamp + UNBOND_DELAY - 1);
        (Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs) = _lie(KEY, 1);
        slashing.reportCheckpoints(one, other, rvs);
        (, uint128 unbonding) = _stake(WALLET);
        check(unbonding == 500, "slashed");
        vm.warp(block.timestamp + 2);
        (one, other, rvs) = _lie(KEY, 2);
        _refuse(one, other, rvs, Verdicts.NobodyLiable.selector);
    }

    function _propose(Verdict memory verdict, uint64 bitmap) private returns (bytes32) {
        slashing.proposeVerdict(verdict, bitmap, _sign(_verdictDigest(verdict), bitmap));
        return slashing.verdictId(verdict);
    }

    function test_a_verdict_takes_effect_after_its_delay_and_once() public {
        Verdict memory verdict = _verdict(KEY, 3, 500);
        vm.expectPartialRevert(Verdicts.NoOpenVerdict.selector);
        slashing.executeVerdict(verdict);
        bytes32 id = _propose(verdict, 7);
        vm.expectPartialRevert(Verdicts.TooEarly.selector);
        slashing.executeVerdict(verdict);
        vm.warp(block.timestamp + 3 days);
        slashing.executeVerdict(verdict);
        (uint128 stake,) = _stake(WALLET);
        check(stake == 950 && registry.burnable() == 50, "slashed, nobody rewarded");
        vm.expectRevert(abi.encodeWithSelector(Verdicts.NoOpenVerdict.selector, id));
        slashing.executeVerdict(verdict);
        bytes32[] memory rvs = _sign(_verdictDigest(verdict), 7);
        vm.expectRevert(abi.encodeWithSelector(Verdicts.KnownVerdict.selector, id));
        slashing.proposeVerdict(verdict, 7, rvs);
    }

    function test_a_third_of_the_weight_vetoes() public {
        Verdict memory verdict = _verdict(KEY, 3, 500);
        bytes32 id = _propose(verdict, 7);
        bytes32[] memory one = _sign(_vetoDigest(id), 8);
        vm.expectRevert(abi.encodeWithSelector(Verdicts.NoQuorumOf.selector, 1, 4));
        slashing.vetoVerdict(id, 8, one);
        slashing.vetoVerdict(id, 12, _sign(_vetoDigest(id), 12));
        vm.warp(block.timestamp + 3 days);
        vm.expectRevert(abi.encodeWithSelector(Verdicts.NoOpenVerdict.selector, id));
        slashing.executeVerdict(verdict);
        // What was vetoed does not come back.
        bytes32[] memory rvs = _sign(_verdictDigest(verdict), 7);
        vm.expectRevert(abi.encodeWithSelector(Verdicts.KnownVerdict.selector, id));
        slashing.proposeVerdict(verdict, 7, rvs);
    }

    function test_verdicts_need_a_quorum_this_run_and_a_small_part() public {
        Verdict memory verdict = _verdict(KEY, 3, 500);
        bytes32[] memory rvs = _sign(_verdictDigest(verdict), 3);
        vm.expectRevert(abi.encodeWithSelector(Verdicts.NoQuorumOf.selector, 2, 4));
        slashing.proposeVerdict(verdict, 3, rvs);
        verdict.bps = 501;
        vm.expectRevert(abi.encodeWithSelector(Verdicts.OverVerdictCap.selector, 501, 500));
        slashing.proposeVerdict(verdict, 3, rvs);
        verdict.bps = 0;
        vm.expectRevert(abi.encodeWithSelector(Verdicts.OverVerdictCap.selector, 0, 500));
        slashing.proposeVerdict(verdict, 3, rvs);
        (verdict.bps, verdict.runId) = (1, keccak256("another run"));
        vm.expectRevert(abi.encodeWithSelector(Verdicts.WrongRunOf.selector, verdict.runId));
        slashing.proposeVerdict(verdict, 3, rvs);
    }

    function test_verdicts_together_stay_under_the_cap_of_a_period() public {
        Verdict memory first = _verdict(KEY, 1, 300);
        Verdict memory second = _verdict(KEY, 2, 300);
        _propose(first, 7);
        _propose(second, 7);
        vm.warp(block.timestamp + 3 days);
        slashing.executeVerdict(first);
        vm.expectRevert(abi.encodeWithSelector(Verdicts.OverVerdictCap.selector, 600, 500));
        slashing.executeVerdict(second);
        vm.warp(block.timestamp + 30 days);
        slashing.executeVerdict(second);
        (uint128 stake,) = _stake(WALLET);
        check(stake == 970 - 29, "slashed");
    }

    function test_slashing_that_is_wired_wrong_is_not_deployed() public {
        vm.expectRevert(abi.encodeWithSelector(Slashing.WiredWrong.selector));
        new Slashing(registry, hub, RUN, 5000, 500, 3 days, 30 days);
    }
}
