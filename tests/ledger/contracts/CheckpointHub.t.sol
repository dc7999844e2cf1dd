// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {AttestorSet} from "src/AttestorSet.sol";
import {Checkpoint} from "src/Checkpoint.sol";
import {CheckpointHub, IFunding} from "src/CheckpointHub.sol";
import {Signatures} from "src/Signatures.sol";
import {check, vm} from "./Vm.sol";
import {World} from "./World.sol";

contract CheckpointHubTest is World {
    function setUp() public {
        _start();
    }

    function _refuse(Checkpoint memory header, bytes memory refusal) private {
        bytes32[] memory rvs = _sign(_digest(header), 7);
        vm.expectRevert(refusal);
        hub.propose(header, 7, rvs);
    }

    function _refuseSigned(uint64 bitmap, bytes32[] memory rvs, bytes memory refusal) private {
        Checkpoint memory header = _next();
        vm.expectRevert(refusal);
        hub.propose(header, bitmap, rvs);
    }

    function test_a_checkpoint_becomes_the_head_and_active_by_time_alone() public {
        Checkpoint memory header = _next();
        header.tallyRoot = keccak256("tally");
        _propose(header);
        (uint64 epoch, bytes32 hash, uint64 lastRound, uint64 fork) = hub.head();
        check(epoch == 1 && hash == _hash(header) && lastRound == 10 && fork == 0, "head");
        check(!hub.isActive(1), "active at once");
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.NotActive.selector, 1));
        hub.active(1);
        vm.warp(block.timestamp + WINDOW - 1);
        check(!hub.isActive(1), "active a second early");
        vm.warp(block.timestamp + 1);
        check(hub.isActive(1), "not active in time");
        (bytes32 root, uint128 reward) = hub.active(1);
        check(root == header.tallyRoot && reward == EMISSION, "what is active");
        (bytes32 found, bytes32 tally, uint64 number, uint64 activeAt, uint128 cumulative) = hub.slot(1);
        check(found == hash && tally == root && number == 1 && activeAt == block.timestamp && cumulative == reward, "slot");
    }

    function test_every_wrong_place_is_named() public {
        _propose(_next());
        vm.warp(block.timestamp + MIN_INTERVAL);
        (, bytes32 parent,,) = hub.head();
        Checkpoint memory header = _next();
        header.runId = keccak256("another run");
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongRun.selector, header.runId));
        header = _next();
        header.forkNonce = 1;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongFork.selector, 0));
        header = _next();
        header.epoch = 3;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongEpoch.selector, 2));
        header.epoch = 1;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongEpoch.selector, 2));
        header = _next();
        header.parent = 0;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongParent.selector, parent));
        header = _next();
        header.firstRound = 12;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongRounds.selector, 11));
        header = _next();
        header.lastRound = 10;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongRounds.selector, 11));
        header = _next();
        header.lastRound = 1 << 48;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.WrongRounds.selector, 11));
        header = _next();
        header.cumulativeReward = EMISSION - 1;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.RewardFalls.selector, EMISSION));
        header = _next();
        header.cumulativeReward = 2 * EMISSION + 1;
        _refuse(header, abi.encodeWithSelector(CheckpointHub.NotFunded.selector, 2 * EMISSION));
        _propose(_next());
    }

    function test_proposals_keep_their_distance() public {
        _propose(_next());
        uint256 earliest = block.timestamp + MIN_INTERVAL;
        vm.warp(earliest - 1);
        _refuse(_next(), abi.encodeWithSelector(CheckpointHub.TooSoon.selector, earliest));
        vm.warp(earliest);
        _propose(_next());
    }

    function test_more_than_two_thirds_sign() public {
        bytes32 digest = _digest(_next());
        _refuseSigned(3, _sign(digest, 3), abi.encodeWithSelector(CheckpointHub.NoQuorum.selector, 2, 4));
        hub.propose(_next(), 14, _sign(digest, 14));
    }

    function test_exactly_two_thirds_are_too_few() public {
        uint256[] memory three = new uint256[](3);
        (three[0], three[1], three[2]) = (1, 2, 3);
        bytes32[] memory rvs = _sign(_rotation(three, 1), 7);
        (address[] memory addresses, uint16[] memory weights) = _set(three);
        hub.rotate(addresses, weights, 7, rvs);
        attestors = three;
        rvs = _sign(_digest(_next()), 3);
        _refuseSigned(3, rvs, abi.encodeWithSelector(CheckpointHub.NoQuorum.selector, 2, 3));
    }

    function test_bitmap_and_signatures_must_fit() public {
        bytes32 digest = _digest(_next());
        bytes32[] memory two = _sign(digest, 3);
        _refuseSigned(7, two, abi.encodeWithSelector(AttestorSet.WrongSignatureCount.selector, 4));
        bytes32[] memory four = _sign(digest, 15);
        _refuseSigned(7, four, abi.encodeWithSelector(AttestorSet.WrongSignatureCount.selector, 8));
        // A bit nobody has, and the signature of one attestor under the bit of another.
        _refuseSigned(7 | 16, four, abi.encodeWithSelector(AttestorSet.UnknownSigner.selector, 4));
        _refuseSigned(14, _sign(digest, 7), abi.encodeWithSelector(AttestorSet.BadSigner.selector, 1));
        // One signature does not count twice.
        bytes32[] memory rvs = _sign(digest, 7);
        (rvs[2], rvs[3]) = (rvs[0], rvs[1]);
        _refuseSigned(7, rvs, abi.encodeWithSelector(AttestorSet.BadSigner.selector, 1));
        bytes32[] memory none = new bytes32[](0);
        _refuseSigned(0, none, abi.encodeWithSelector(CheckpointHub.NoQuorum.selector, 0, 4));
    }

    function test_high_s_is_refused() public {
        bytes32 digest = _digest(_next());
        bytes32[] memory rvs = _sign(digest, 7);
        // The twin that plain ecrecover takes: n - s with the other parity. Most such s do not fit into 255 bits at all.
        uint256 s = uint256(rvs[1]) & (type(uint256).max >> 1);
        uint8 v = uint8(uint256(rvs[1]) >> 255) + 27;
        address attestor = vm.addr(attestors[0]);
        check(ecrecover(digest, v == 27 ? 28 : 27, rvs[0], bytes32(ORDER - s)) == attestor, "the twin is no signature");
        rvs[1] = bytes32((ORDER / 2 + 1) | (uint256(v == 27 ? 1 : 0) << 255));
        _refuseSigned(7, rvs, abi.encodeWithSelector(Signatures.HighS.selector));
    }

    function test_a_signature_that_recovers_to_nobody_counts_for_nobody() public {
        bytes32[] memory rvs = _sign(_digest(_next()), 7);
        (rvs[0], rvs[1]) = (bytes32(0), bytes32(uint256(1)));
        check(ecrecover(_digest(_next()), 27, rvs[0], rvs[1]) == address(0), "recovers to somebody");
        _refuseSigned(7, rvs, abi.encodeWithSelector(AttestorSet.BadSigner.selector, 0));
    }

    function test_signatures_are_for_one_chain_and_one_contract() public {
        Checkpoint memory header = _next();
        bytes32[] memory elsewhere = _sign(_digest(address(pool), _hash(header)), 7);
        _refuseSigned(7, elsewhere, abi.encodeWithSelector(AttestorSet.BadSigner.selector, 0));
        bytes32[] memory rvs = _sign(_digest(header), 7);
        vm.chainId(1);
        _refuseSigned(7, rvs, abi.encodeWithSelector(AttestorSet.BadSigner.selector, 0));
        vm.chainId(31337);
        hub.propose(header, 7, rvs);
    }

    function test_rollback_removes_what_is_not_active_and_moves_the_fork() public {
        Checkpoint memory first = _next();
        _propose(first);
        for (uint256 i = 0; i < 3; ++i) {
            vm.warp(block.timestamp + MIN_INTERVAL);
            _propose(_next());
        }
        Checkpoint memory old = _next();
        _rollback(2);
        (uint64 epoch, bytes32 hash, uint64 lastRound, uint64 fork) = hub.head();
        check(epoch == 1 && hash == _hash(first) && lastRound == 10 && fork == 1, "head");
        for (uint64 gone = 2; gone <= 4; ++gone) {
            (bytes32 left,,,,) = hub.slot(gone);
            check(left == 0, "a slot survived its rollback");
        }
        vm.warp(block.timestamp + WINDOW);
        check(!hub.isActive(2) && hub.isActive(1), "what is active");
        // What was signed before does not fit after it.
        old.epoch = 2;
        _refuse(old, abi.encodeWithSelector(CheckpointHub.WrongFork.selector, 1));
        _propose(_next());
    }

    function test_what_is_active_stays() public {
        _propose(_next());
        vm.warp(block.timestamp + WINDOW);
        bytes32[] memory rvs = new bytes32[](0);
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.AlreadyActive.selector, 1));
        hub.rollback(1, 0, rvs);
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.WrongEpoch.selector, 2));
        hub.rollback(3, 0, rvs);
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.WrongEpoch.selector, 2));
        hub.rollback(0, 0, rvs);
    }

    function test_rollback_of_the_next_epoch_removes_nothing_and_moves_the_fork() public {
        _rollback(1);
        (uint64 epoch,,, uint64 fork) = hub.head();
        check(epoch == 0 && fork == 1, "before the first");
        for (uint256 i = 0; i < 70; ++i) {
            _propose(_next());
            vm.warp(block.timestamp + WINDOW);
        }
        Checkpoint memory divided = _next();
        (, bytes32 before,,) = hub.head();
        _rollback(71);
        bytes32 hash;
        (epoch, hash,, fork) = hub.head();
        check(epoch == 70 && hash == before && fork == 2, "the head stays");
        for (uint64 kept = 7; kept <= 70; ++kept) check(hub.isActive(kept), "a checkpoint is gone");
        _refuse(divided, abi.encodeWithSelector(CheckpointHub.WrongFork.selector, 2));
        _propose(_next());
    }

    function test_rollback_takes_a_quorum_of_this_fork() public {
        _propose(_next());
        bytes32 kind = keccak256("Rollback(bytes32 runId,uint64 forkNonce,uint64 epoch)");
        bytes32 digest = _digest(address(hub), keccak256(abi.encode(kind, RUN, uint64(0), uint64(1))));
        bytes32[] memory rvs = _sign(digest, 3);
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.NoQuorum.selector, 2, 4));
        hub.rollback(1, 3, rvs);
        rvs = _sign(digest, 7);
        hub.rollback(1, 7, rvs);
        _propose(_next());
        vm.expectRevert(abi.encodeWithSelector(AttestorSet.BadSigner.selector, 0));
        hub.rollback(1, 7, rvs);
    }

    function test_attestors_hand_over_once() public {
        uint256[] memory to = new uint256[](64);
        for (uint256 i = 0; i < 64; ++i) to[i] = 5000 + i;
        (address[] memory addresses, uint16[] memory weights) = _set(to);
        bytes32[] memory rvs = _sign(_rotation(to, 1), 7);
        hub.rotate(addresses, weights, 7, rvs);
        (address[] memory found, uint16[] memory weight) = hub.attestors();
        check(found.length == 64 && found[63] == addresses[63] && weight[63] == 1, "the new set");
        uint64 all = type(uint64).max;
        vm.expectRevert(abi.encodeWithSelector(AttestorSet.BadSigner.selector, 0));
        hub.rotate(addresses, weights, 7, rvs);
        attestors = to;
        hub.propose(_next(), all, _sign(_digest(_next()), all));
    }

    function test_a_set_has_no_twins_no_zeros_and_at_most_64() public {
        address[] memory addresses = new address[](2);
        uint16[] memory weights = new uint16[](2);
        (addresses[0], addresses[1], weights[0], weights[1]) = (address(1), address(1), 1, 1);
        vm.expectRevert(abi.encodeWithSelector(AttestorSet.BadAttestor.selector, 1));
        new CheckpointHub(RUN, addresses, weights, 0, 0, IFunding(address(pool)));
        addresses[1] = address(0);
        vm.expectRevert(abi.encodeWithSelector(AttestorSet.BadAttestor.selector, 1));
        new CheckpointHub(RUN, addresses, weights, 0, 0, IFunding(address(pool)));
        (addresses[1], weights[1]) = (address(2), 0);
        vm.expectRevert(abi.encodeWithSelector(AttestorSet.BadAttestor.selector, 1));
        new CheckpointHub(RUN, addresses, weights, 0, 0, IFunding(address(pool)));
        for (uint256 count = 0; count < 66; count += 65) {
            addresses = new address[](count);
            weights = new uint16[](count);
            vm.expectRevert(abi.encodeWithSelector(AttestorSet.BadAttestorCount.selector, count, count));
            new CheckpointHub(RUN, addresses, weights, 0, 0, IFunding(address(pool)));
        }
    }

    function test_the_window_fits_into_the_ring() public {
        (address[] memory addresses, uint16[] memory weights) = _set(attestors);
        new CheckpointHub(RUN, addresses, weights, 62 * 60, 60, IFunding(address(pool)));
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.WindowTooLong.selector, 62 * 60 + 1, 62 * 60));
        new CheckpointHub(RUN, addresses, weights, 62 * 60 + 1, 60, IFunding(address(pool)));
    }

    function test_the_ring_forgets_the_oldest() public {
        for (uint256 i = 0; i < 65; ++i) {
            vm.warp(block.timestamp + MIN_INTERVAL);
            Checkpoint memory header = _next();
            header.cumulativeReward = 1;
            _propose(header);
        }
        (bytes32 forgotten,,,,) = hub.slot(1);
        (bytes32 kept,,,,) = hub.slot(2);
        check(forgotten == 0 && kept != 0 && !hub.isActive(1) && hub.isActive(2), "ring");
        // Slot 64 stands where slot 0 would: neither is taken for the other.
        (bytes32 none,,,,) = hub.slot(0);
        check(none == 0 && !hub.isActive(0), "epoch 0");
    }

    function testFuzz_quorum_is_the_weight_of_who_signed(uint64 bitmap, uint16[4] memory weight) public {
        bitmap %= 16;
        (address[] memory addresses, uint16[] memory weights) = _set(attestors);
        (uint256 signed, uint256 total) = (0, 0);
        for (uint256 i = 0; i < 4; ++i) {
            weights[i] = weight[i] == 0 ? 1 : weight[i];
            total += weights[i];
            if ((bitmap >> i) & 1 == 1) signed += weights[i];
        }
        hub = new CheckpointHub(RUN, addresses, weights, WINDOW, MIN_INTERVAL, IFunding(address(pool)));
        bytes32 digest = _digest(_next());
        (uint256 found, uint256 all) = hub.signedWeight(digest, bitmap, _sign(digest, bitmap));
        check(found == signed && all == total, "weights");
    }
}
