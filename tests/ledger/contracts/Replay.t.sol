// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {AttestorSet} from "src/AttestorSet.sol";
import {Checkpoint} from "src/Checkpoint.sol";
import {CheckpointHub, IFunding} from "src/CheckpointHub.sol";
import {Verdict, Verdicts} from "src/Verdicts.sol";
import {check, vm} from "./Vm.sol";
import {World} from "./World.sol";

/// @notice Whatever attestors sign counts in one place: one run, chain, contract, fork and number. Put under a call that
/// is right in itself, signatures of another place are of nobody.
contract ReplayTest is World {
    bytes32 private constant OTHER_RUN = keccak256("another run");
    uint256 private constant KEY = 77;

    function setUp() public {
        _start();
        _enrol(address(this), KEY, 0);
    }

    /// @dev What is signed for another run, contract or chain instead of `here` on `contract_`.
    function _elsewhere(address contract_, bytes32 here, bytes32 there) private returns (bytes32[3] memory digests) {
        digests[0] = _digest(contract_, there);
        digests[1] = _digest(contract_ == address(hub) ? address(slashing) : address(hub), here);
        vm.chainId(1);
        digests[2] = _digest(contract_, here);
        vm.chainId(31337);
    }

    function _expectStranger() private {
        vm.expectRevert(abi.encodeWithSelector(AttestorSet.BadSigner.selector, 0));
    }

    function test_a_checkpoint_is_for_one_run_contract_and_chain() public {
        Checkpoint memory header = _next();
        Checkpoint memory foreign = _next();
        foreign.runId = OTHER_RUN;
        bytes32[3] memory digests = _elsewhere(address(hub), _hash(header), _hash(foreign));
        for (uint256 i = 0; i < 3; ++i) {
            bytes32[] memory rvs = _sign(digests[i], 7);
            _expectStranger();
            hub.propose(header, 7, rvs);
        }
        bytes32[] memory right = _sign(_digest(header), 7);
        (address[] memory addresses, uint16[] memory weights) = _set(attestors);
        CheckpointHub twin = new CheckpointHub(RUN, addresses, weights, WINDOW, MIN_INTERVAL, IFunding(address(pool)));
        _expectStranger();
        twin.propose(header, 7, right);
        hub.propose(header, 7, right);
    }

    function test_a_checkpoint_is_for_one_fork() public {
        bytes32[] memory old = _sign(_digest(_next()), 7);
        _rollback(1);
        Checkpoint memory header = _next();
        check(header.forkNonce == 1, "the fork did not move");
        _expectStranger();
        hub.propose(header, 7, old);
        _propose(header);
    }

    function _rollbackHash(bytes32 run, uint64 fork, uint64 epoch) private pure returns (bytes32) {
        return keccak256(abi.encode(keccak256("Rollback(bytes32 runId,uint64 forkNonce,uint64 epoch)"), run, fork, epoch));
    }

    function test_a_rollback_is_for_one_run_contract_chain_fork_and_epoch() public {
        _propose(_next());
        bytes32 here = _rollbackHash(RUN, 0, 1);
        bytes32[3] memory digests = _elsewhere(address(hub), here, _rollbackHash(OTHER_RUN, 0, 1));
        bytes32[5] memory wrong = [
            digests[0],
            digests[1],
            digests[2],
            _digest(address(hub), _rollbackHash(RUN, 1, 1)),
            _digest(address(hub), _rollbackHash(RUN, 0, 2))
        ];
        for (uint256 i = 0; i < 5; ++i) {
            bytes32[] memory rvs = _sign(wrong[i], 7);
            _expectStranger();
            hub.rollback(1, 7, rvs);
        }
        hub.rollback(1, 7, _sign(_digest(address(hub), here), 7));
    }

    function _rotationHash(bytes32 run, uint64 nonce) private view returns (bytes32) {
        (address[] memory addresses, uint16[] memory weights) = _set(attestors);
        bytes32 kind = keccak256("Rotation(bytes32 runId,uint64 nonce,bytes32 attestors)");
        return keccak256(abi.encode(kind, run, nonce, keccak256(abi.encode(addresses, weights))));
    }

    function test_a_rotation_is_for_one_run_contract_chain_and_number() public {
        (address[] memory addresses, uint16[] memory weights) = _set(attestors);
        bytes32 here = _rotationHash(RUN, 1);
        bytes32[3] memory digests = _elsewhere(address(hub), here, _rotationHash(OTHER_RUN, 1));
        for (uint256 i = 0; i < 3; ++i) {
            bytes32[] memory rvs = _sign(digests[i], 7);
            _expectStranger();
            hub.rotate(addresses, weights, 7, rvs);
        }
        bytes32[] memory right = _sign(_digest(address(hub), here), 7);
        hub.rotate(addresses, weights, 7, right);
        // The attestors are the same, the number of the rotation is not.
        _expectStranger();
        hub.rotate(addresses, weights, 7, right);
    }

    function test_a_verdict_is_for_one_run_contract_and_chain_and_used_once() public {
        Verdict memory verdict = _verdict(KEY, 1, 100);
        bytes32 here = slashing.verdictId(verdict);
        verdict.runId = OTHER_RUN;
        bytes32[3] memory digests = _elsewhere(address(slashing), here, slashing.verdictId(verdict));
        verdict.runId = RUN;
        for (uint256 i = 0; i < 3; ++i) {
            bytes32[] memory rvs = _sign(digests[i], 7);
            _expectStranger();
            slashing.proposeVerdict(verdict, 7, rvs);
        }
        bytes32[] memory right = _sign(_verdictDigest(verdict), 7);
        slashing.proposeVerdict(verdict, 7, right);
        slashing.vetoVerdict(here, 7, _sign(_vetoDigest(here), 7));
        vm.expectRevert(abi.encodeWithSelector(Verdicts.KnownVerdict.selector, here));
        slashing.proposeVerdict(verdict, 7, right);
    }

    function test_a_veto_is_for_one_verdict_contract_and_chain() public {
        Verdict memory verdict = _verdict(KEY, 1, 100);
        bytes32 id = slashing.verdictId(verdict);
        slashing.proposeVerdict(verdict, 7, _sign(_verdictDigest(verdict), 7));
        bytes32 kind = keccak256("Veto(bytes32 verdict)");
        bytes32 here = keccak256(abi.encode(kind, id));
        bytes32[3] memory digests = _elsewhere(address(slashing), here, keccak256(abi.encode(kind, OTHER_RUN)));
        for (uint256 i = 0; i < 3; ++i) {
            bytes32[] memory rvs = _sign(digests[i], 7);
            _expectStranger();
            slashing.vetoVerdict(id, 7, rvs);
        }
        slashing.vetoVerdict(id, 7, _sign(_digest(address(slashing), here), 7));
    }
}
