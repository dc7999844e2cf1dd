// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {PeerRegistry} from "src/PeerRegistry.sol";
import {Signatures} from "src/Signatures.sol";
import {Token} from "src/Token.sol";
import {check, vm} from "./Vm.sol";
import {World} from "./World.sol";

contract PeerRegistryTest is World {
    address private constant ALICE = address(0xA11CE);
    address private constant BOB = address(0xB0B);
    uint256 private constant KEY = 77;
    uint256 private constant OTHER = 78;

    function setUp() public {
        _start();
        _fund(ALICE, 1000);
        _fund(BOB, 1000);
    }

    function _slash(address wallet, uint16 bps, address reporter) private returns (uint128) {
        vm.prank(address(slashing));
        return registry.slash(wallet, bps, reporter);
    }

    function test_a_key_signs_for_its_wallet() public {
        _enrol(ALICE, KEY, 600);
        (address key, uint128 stake, uint128 unbonding, uint64 unlockAt, bool jailed) = registry.peer(ALICE);
        check(key == vm.addr(KEY) && stake == 600 && unbonding == 0 && unlockAt == 0 && !jailed, "peer");
        check(registry.walletOf(key) == ALICE && registry.liable(key) == ALICE, "owner");
        check(token.balanceOf(address(registry)) == 600, "balance");
        _enrol(BOB, OTHER, 0);
        check(registry.walletOf(vm.addr(OTHER)) == BOB, "a newcomer without tokens");
    }

    function test_bindings_are_for_one_wallet_contract_and_chain() public {
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(ALICE, KEY);
        vm.prank(BOB);
        vm.expectPartialRevert(PeerRegistry.BadBinding.selector);
        registry.enrol(x, y, r, vs, 0, 0);
        PeerRegistry another = new PeerRegistry(token, address(slashing), UNBOND_DELAY);
        vm.prank(ALICE);
        vm.expectPartialRevert(PeerRegistry.BadBinding.selector);
        another.enrol(x, y, r, vs, 0, 0);
        vm.chainId(1);
        vm.prank(ALICE);
        vm.expectPartialRevert(PeerRegistry.BadBinding.selector);
        registry.enrol(x, y, r, vs, 0, 0);
        vm.chainId(31337);
        vm.prank(ALICE);
        registry.enrol(x, y, r, vs, 0, 0);
    }

    function test_no_signature_binds_nothing() public {
        (bytes32 x, bytes32 y,, bytes32 vs) = _binding(ALICE, KEY);
        vm.startPrank(ALICE);
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.BadBinding.selector, vm.addr(KEY), address(0)));
        registry.enrol(x, y, 0, vs, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(Signatures.HighS.selector));
        registry.enrol(x, y, bytes32(uint256(1)), bytes32(ORDER / 2 + 1), 0, 0);
        vm.stopPrank();
    }

    function test_one_owner_per_key_and_one_key_per_owner() public {
        _enrol(ALICE, KEY, 1);
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(BOB, KEY);
        vm.prank(BOB);
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.KeyTaken.selector, vm.addr(KEY)));
        registry.enrol(x, y, r, vs, 0, 0);
        (x, y, r, vs) = _binding(ALICE, OTHER);
        vm.prank(ALICE);
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.AlreadyEnrolled.selector, ALICE));
        registry.enrol(x, y, r, vs, 0, 0);
    }

    function test_stake_waits_before_it_leaves() public {
        _enrol(ALICE, KEY, 600);
        vm.startPrank(ALICE);
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.NothingToDo.selector));
        registry.withdraw();
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.TooMuch.selector, 601, 600));
        registry.requestUnbond(601);
        registry.requestUnbond(100);
        uint256 start = block.timestamp;
        vm.warp(start + UNBOND_DELAY - 1);
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.Locked.selector, start + UNBOND_DELAY));
        registry.withdraw();
        // A second request puts both off.
        registry.requestUnbond(50);
        vm.warp(start + UNBOND_DELAY);
        vm.expectPartialRevert(PeerRegistry.Locked.selector);
        registry.withdraw();
        vm.warp(start + 2 * UNBOND_DELAY);
        registry.withdraw();
        check(token.balanceOf(ALICE) == 550, "paid out");
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.NothingToDo.selector));
        registry.withdraw();
        vm.stopPrank();
    }

    function test_strangers_have_nothing_here() public {
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(ALICE, KEY);
        bytes memory refusal = abi.encodeWithSelector(PeerRegistry.NotEnrolled.selector, ALICE);
        vm.startPrank(ALICE);
        vm.expectRevert(refusal);
        registry.addStake(1);
        vm.expectRevert(refusal);
        registry.requestUnbond(1);
        vm.expectRevert(refusal);
        registry.rotateKey(x, y, r, vs);
        vm.expectRevert(refusal);
        registry.setMetadata(0);
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.NotSlashing.selector, ALICE));
        registry.slash(ALICE, 1, ALICE);
        vm.stopPrank();
        vm.prank(address(slashing));
        vm.expectRevert(refusal);
        registry.slash(ALICE, 1, ALICE);
    }

    function test_what_is_unbonding_is_slashed_until_it_is_gone() public {
        _enrol(ALICE, KEY, 1000);
        vm.prank(ALICE);
        registry.requestUnbond(600);
        uint256 supply = token.totalSupply();
        check(_slash(ALICE, 5000, BOB) == 500, "half of all");
        (uint128 stake, uint128 unbonding) = _stake(ALICE);
        check(stake == 200 && unbonding == 300, "what is left");
        check(token.balanceOf(BOB) == 1050 && registry.burnable() == 450, "a tenth to the reporter");
        registry.burn();
        check(token.totalSupply() == supply - 450 && registry.burnable() == 0, "the rest burns");
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.NothingToDo.selector));
        registry.burn();
        check(_slash(ALICE, 10_000, address(0)) == 500, "all of the rest");
        check(registry.burnable() == 500 && _slash(ALICE, 10_000, BOB) == 0, "nothing is left to slash");
    }

    function test_jail_keeps_in_but_lets_out() public {
        _enrol(ALICE, KEY, 900);
        _slash(ALICE, 4999, BOB);
        (,,,, bool jailed) = registry.peer(ALICE);
        check(!jailed, "jailed for less than half");
        _slash(ALICE, 5000, BOB);
        (,,,, jailed) = registry.peer(ALICE);
        check(jailed, "not jailed for half");
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(ALICE, OTHER);
        bytes memory refusal = abi.encodeWithSelector(PeerRegistry.IsJailed.selector, ALICE);
        (uint128 stake,) = _stake(ALICE);
        vm.startPrank(ALICE);
        vm.expectRevert(refusal);
        registry.addStake(1);
        vm.expectRevert(refusal);
        registry.rotateKey(x, y, r, vs);
        registry.requestUnbond(stake);
        vm.warp(block.timestamp + UNBOND_DELAY);
        registry.withdraw();
        vm.stopPrank();
        check(token.balanceOf(ALICE) == 100 + stake, "withdrawn from jail");
        // A smaller slash later does not let out.
        _slash(ALICE, 1, BOB);
        (,,,, jailed) = registry.peer(ALICE);
        check(jailed, "let out");
    }

    function test_an_old_key_answers_for_the_unbonding_delay() public {
        _enrol(ALICE, KEY, 600);
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(ALICE, OTHER);
        vm.prank(ALICE);
        registry.rotateKey(x, y, r, vs);
        (address key, uint128 stake,,,) = registry.peer(ALICE);
        address old = vm.addr(KEY);
        check(key == vm.addr(OTHER) && stake == 600 && registry.liable(old) == ALICE, "after the rotation");
        vm.warp(block.timestamp + UNBOND_DELAY);
        check(registry.liable(old) == ALICE, "until the end of the delay");
        vm.warp(block.timestamp + 1);
        check(registry.liable(old) == address(0) && registry.liable(key) == ALICE, "after the delay");
        check(registry.walletOf(old) == ALICE, "what it earned is still paid");
        (x, y, r, vs) = _binding(ALICE, KEY);
        vm.prank(ALICE);
        vm.expectRevert(abi.encodeWithSelector(PeerRegistry.KeyTaken.selector, old));
        registry.rotateKey(x, y, r, vs);
    }

    function test_a_stake_that_does_not_fit_is_refused() public {
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(ALICE, KEY);
        vm.prank(ALICE);
        vm.expectRevert(abi.encodeWithSignature("SafeCastOverflowedUintDowncast(uint8,uint256)", 88, 1 << 88));
        registry.enrol(x, y, r, vs, 1 << 88, 0);
        check(registry.walletOf(vm.addr(KEY)) == address(0), "bound all the same");
    }

    function test_a_token_that_calls_back_is_paid_once() public {
        Reentrant evil = new Reentrant();
        registry = new PeerRegistry(Token(address(evil)), address(slashing), UNBOND_DELAY);
        _enrol(address(evil), KEY, 100);
        vm.prank(address(evil));
        registry.requestUnbond(100);
        vm.warp(block.timestamp + UNBOND_DELAY);
        vm.prank(address(evil));
        registry.withdraw();
        check(evil.asked() == 1 && evil.refused() == 1, "paid twice");
    }
}

/// @notice A token that is its own staker and withdraws again while it is being paid.
contract Reentrant {
    uint256 public asked;
    uint256 public refused;

    function transferFrom(address, address, uint256) external pure returns (bool) {
        return true;
    }

    function transfer(address, uint256) external returns (bool) {
        ++asked;
        try PeerRegistry(msg.sender).withdraw() {}
        catch {
            ++refused;
        }
        return true;
    }
}
