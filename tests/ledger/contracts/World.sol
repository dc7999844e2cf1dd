// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Checkpoint} from "src/Checkpoint.sol";
import {CheckpointHub, IFunding} from "src/CheckpointHub.sol";
import {PeerRegistry} from "src/PeerRegistry.sol";
import {RewardPool} from "src/RewardPool.sol";
import {Slashing} from "src/Slashing.sol";
import {Token} from "src/Token.sol";
import {Verdict} from "src/Verdicts.sol";
import {Artifacts} from "./Artifacts.sol";
import {Vm, vm} from "./Vm.sol";

/// @notice All five contracts, four attestors of weight 1, and the signatures of everybody.
abstract contract World {
    bytes32 internal constant RUN = keccak256("a run");
    uint64 internal constant MIN_INTERVAL = 60;
    uint64 internal constant WINDOW = 600;
    uint64 internal constant UNBOND_DELAY = 14 days;
    uint128 internal constant EMISSION = 1000e18;
    uint256 internal constant CAP = 1_000_000e18;
    uint256 internal constant GENESIS = 900_000e18;
    uint256 internal constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    Token internal token;
    PeerRegistry internal registry;
    CheckpointHub internal hub;
    RewardPool internal pool;
    Slashing internal slashing;
    address internal treasury = address(0x7EA5);
    address internal providers = address(0xDA7A);
    uint256[] internal attestors;

    function _start() internal {
        vm.warp(1_800_000_000);
        for (uint256 i = 1; i <= 4; ++i) attestors.push(1000 + i);
        _found(EMISSION);
    }

    function _found(uint128 emission) internal {
        (address[] memory addresses, uint16[] memory weights) = _set(attestors);
        uint256 nonce = vm.getNonce(address(this));
        address poolAt = vm.computeCreateAddress(address(this), nonce + 3);
        token = Token(_deploy(Artifacts.TOKEN, abi.encode("Murmuration", "MUR", CAP, poolAt)));
        address slashingAt = vm.computeCreateAddress(address(this), nonce + 4);
        registry = PeerRegistry(_deploy(Artifacts.PEER_REGISTRY, abi.encode(token, slashingAt, UNBOND_DELAY)));
        bytes memory arguments = abi.encode(RUN, addresses, weights, WINDOW, MIN_INTERVAL, poolAt);
        hub = CheckpointHub(_deploy(Artifacts.CHECKPOINT_HUB, arguments));
        pool = RewardPool(_deploy(Artifacts.REWARD_POOL, _poolArguments(emission)));
        arguments = abi.encode(registry, hub, RUN, 5000, 500, 3 days, 30 days);
        slashing = Slashing(_deploy(Artifacts.SLASHING, arguments));
    }

    function _poolArguments(uint128 emission) private view returns (bytes memory) {
        address[] memory holders = new address[](1);
        uint256[] memory amounts = new uint256[](1);
        (holders[0], amounts[0]) = (address(this), GENESIS);
        RewardPool.Splits memory splits = RewardPool.Splits(7000, 1000, 1500, 500);
        return abi.encode(token, hub, registry, treasury, providers, emission, splits, holders, amounts);
    }

    /// @dev The bytes that are shipped, not a compilation of these tests'.
    function _deploy(bytes memory code, bytes memory arguments) private returns (address made) {
        code = bytes.concat(code, arguments);
        assembly {
            made := create(0, add(code, 32), mload(code))
        }
        require(made != address(0), "not deployed");
    }

    function _set(uint256[] memory secrets) internal pure returns (address[] memory addresses, uint16[] memory weights) {
        addresses = new address[](secrets.length);
        weights = new uint16[](secrets.length);
        for (uint256 i = 0; i < secrets.length; ++i) {
            (addresses[i], weights[i]) = (vm.addr(secrets[i]), 1);
        }
    }

    function _next() internal view returns (Checkpoint memory header) {
        (uint64 epoch, bytes32 parent, uint64 lastRound, uint64 fork) = hub.head();
        header.runId = RUN;
        (header.forkNonce, header.epoch, header.parent) = (fork, epoch + 1, parent);
        (header.firstRound, header.lastRound) = (lastRound + 1, lastRound + 10);
        header.modelRoot = keccak256(abi.encode("model", epoch));
        header.cumulativeReward = EMISSION * (epoch + 1);
    }

    /// @dev By its fields, not by the library under test.
    function _hash(Checkpoint memory header) internal pure returns (bytes32) {
        bytes32 kind = keccak256(
            "Checkpoint(bytes32 runId,uint64 forkNonce,uint64 epoch,bytes32 parent,uint64 firstRound,uint64 lastRound,"
            "bytes32 modelRoot,bytes32 dataRoot,bytes32 tallyRoot,uint128 cumulativeReward,uint64 peers,uint128 tokens)"
        );
        return keccak256(abi.encode(kind, header));
    }

    function _digest(address contract_, bytes32 structHash) internal view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Murmuration"),
                keccak256("1"),
                block.chainid,
                contract_
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function _digest(Checkpoint memory header) internal view returns (bytes32) {
        return _digest(address(hub), _hash(header));
    }

    function _compact(uint256 secret, bytes32 digest) internal pure returns (bytes32 r, bytes32 vs) {
        uint8 v;
        bytes32 s;
        (v, r, s) = vm.sign(secret, digest);
        vs = bytes32(uint256(s) | (uint256(v - 27) << 255));
    }

    /// @dev Signatures of the attestors whose bits are set.
    function _sign(bytes32 digest, uint64 bitmap) internal view returns (bytes32[] memory rvs) {
        rvs = new bytes32[](128);
        uint256 word = 0;
        for (uint256 i = 0; i < attestors.length; ++i) {
            if ((bitmap >> i) & 1 == 1) {
                (rvs[word], rvs[word + 1]) = _compact(attestors[i], digest);
                word += 2;
            }
        }
        assembly {
            mstore(rvs, word)
        }
    }

    function _propose(Checkpoint memory header) internal {
        hub.propose(header, 7, _sign(_digest(header), 7));
    }

    function _rollback(uint64 epoch) internal {
        (,,, uint64 fork) = hub.head();
        bytes32 kind = keccak256("Rollback(bytes32 runId,uint64 forkNonce,uint64 epoch)");
        bytes32 digest = _digest(address(hub), keccak256(abi.encode(kind, RUN, fork, epoch)));
        hub.rollback(epoch, 7, _sign(digest, 7));
    }

    function _rotation(uint256[] memory to, uint64 nonce) internal view returns (bytes32) {
        (address[] memory addresses, uint16[] memory weights) = _set(to);
        bytes32 kind = keccak256("Rotation(bytes32 runId,uint64 nonce,bytes32 attestors)");
        return _digest(
            address(hub), keccak256(abi.encode(kind, RUN, nonce, keccak256(abi.encode(addresses, weights))))
        );
    }

    function _binding(address wallet, uint256 secret) internal returns (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) {
        Vm.Wallet memory key = vm.createWallet(secret);
        (x, y) = (bytes32(key.publicKeyX), bytes32(key.publicKeyY));
        (r, vs) = _compact(
            secret, sha256(abi.encodePacked("murmuration/enrol/1", block.chainid, address(registry), wallet))
        );
    }

    function _fund(address wallet, uint256 amount) internal {
        token.transfer(wallet, amount);
        vm.prank(wallet);
        token.approve(address(registry), type(uint256).max);
    }

    function _enrol(address wallet, uint256 secret, uint128 stake) internal {
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(wallet, secret);
        vm.prank(wallet);
        registry.enrol(x, y, r, vs, stake, keccak256("metadata"));
    }

    function _stake(address wallet) internal view returns (uint128 stake, uint128 unbonding) {
        (, stake, unbonding,,) = registry.peer(wallet);
    }

    /// @dev Two headers of one epoch that one key signed.
    function _lie(uint256 secret, uint64 epoch)
        internal
        view
        returns (Checkpoint memory one, Checkpoint memory other, bytes32[4] memory rvs)
    {
        (one, other) = (_next(), _next());
        (one.epoch, other.epoch, other.dataRoot) = (epoch, epoch, keccak256("another"));
        (rvs[0], rvs[1]) = _compact(secret, _digest(one));
        (rvs[2], rvs[3]) = _compact(secret, _digest(other));
    }

    function _verdict(uint256 secret, uint64 epoch, uint16 bps) internal pure returns (Verdict memory) {
        return Verdict(RUN, epoch, vm.addr(secret), bps, keccak256("an audit"));
    }

    function _verdictDigest(Verdict memory verdict) internal view returns (bytes32) {
        bytes32 kind = keccak256("Verdict(bytes32 runId,uint64 epoch,address key,uint16 bps,bytes32 evidence)");
        return _digest(address(slashing), keccak256(abi.encode(kind, verdict)));
    }

    function _vetoDigest(bytes32 id) internal view returns (bytes32) {
        return _digest(address(slashing), keccak256(abi.encode(keccak256("Veto(bytes32 verdict)"), id)));
    }

    function _leaf(address account, uint256 cumulative) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(account, cumulative))));
    }

    function _pair(bytes32 one, bytes32 other) internal pure returns (bytes32) {
        return one < other ? keccak256(bytes.concat(one, other)) : keccak256(bytes.concat(other, one));
    }
}
