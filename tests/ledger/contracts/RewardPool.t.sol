// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Checkpoint} from "src/Checkpoint.sol";
import {CheckpointHub} from "src/CheckpointHub.sol";
import {RewardPool} from "src/RewardPool.sol";
import {Token} from "src/Token.sol";
import {check, vm} from "./Vm.sol";
import {World} from "./World.sol";

contract RewardPoolTest is World {
    uint256 private constant KEY = 77;
    address private constant WALLET = address(0xA11CE);
    bytes32[] private none;

    function setUp() public {
        _start();
    }

    /// @dev A checkpoint whose tally has one leaf, made active; its epoch.
    function _tally(address account, uint256 cumulative, uint128 promised) private returns (uint64) {
        vm.warp(block.timestamp + MIN_INTERVAL);
        Checkpoint memory header = _next();
        (header.tallyRoot, header.cumulativeReward) = (_leaf(account, cumulative), promised);
        _propose(header);
        vm.warp(block.timestamp + WINDOW);
        return header.epoch;
    }

    function test_a_claim_pays_what_was_not_paid_yet() public {
        address account = vm.addr(KEY);
        pool.claim(_tally(account, 100, EMISSION), account, 100, none);
        check(token.balanceOf(account) == 100 && pool.claimed(account) == 100, "the first");
        uint64 epoch = _tally(account, 250, 2 * EMISSION);
        pool.claim(epoch, account, 250, none);
        check(token.balanceOf(account) == 250, "the second");
        vm.expectRevert(abi.encodeWithSelector(RewardPool.NothingToClaim.selector, 250));
        pool.claim(epoch, account, 250, none);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.NothingToClaim.selector, 250));
        pool.claim(1, account, 100, none);
    }

    function test_the_wallet_of_the_key_is_paid_even_after_a_rotation() public {
        address account = vm.addr(KEY);
        _enrol(WALLET, KEY, 0);
        pool.claim(_tally(account, 100, EMISSION), account, 100, none);
        (bytes32 x, bytes32 y, bytes32 r, bytes32 vs) = _binding(WALLET, KEY + 1);
        vm.prank(WALLET);
        registry.rotateKey(x, y, r, vs);
        pool.claim(_tally(account, 150, EMISSION), account, 150, none);
        check(token.balanceOf(WALLET) == 150 && token.balanceOf(account) == 0, "paid");
    }

    function test_only_what_stands_in_an_active_tally_is_paid() public {
        address account = vm.addr(KEY);
        uint64 epoch = _tally(account, 100, EMISSION);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.BadProof.selector));
        pool.claim(epoch, account, 101, none);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.BadProof.selector));
        pool.claim(epoch, address(this), 100, none);
        bytes32[] memory proof = new bytes32[](1);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.BadProof.selector));
        pool.claim(epoch, account, 100, proof);
        vm.warp(block.timestamp + MIN_INTERVAL);
        Checkpoint memory header = _next();
        (header.tallyRoot, header.cumulativeReward) = (_leaf(account, 500), EMISSION);
        _propose(header);
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.NotActive.selector, epoch + 1));
        pool.claim(epoch + 1, account, 500, none);
        _rollback(epoch + 1);
        vm.warp(block.timestamp + WINDOW);
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.NotActive.selector, epoch + 1));
        pool.claim(epoch + 1, account, 500, none);
    }

    function test_a_proof_is_for_the_tally_that_it_leads_to() public {
        address account = vm.addr(KEY);
        bytes32[] memory old = new bytes32[](1);
        bytes32[] memory new_ = new bytes32[](1);
        (old[0], new_[0]) = (_leaf(WALLET, 40), _leaf(WALLET, 90));
        uint64[2] memory epochs;
        vm.warp(block.timestamp + MIN_INTERVAL);
        for (uint256 i = 0; i < 2; ++i) {
            Checkpoint memory header = _next();
            header.tallyRoot = _pair(_leaf(account, 100), i == 0 ? old[0] : new_[0]);
            _propose(header);
            vm.warp(block.timestamp + WINDOW);
            epochs[i] = header.epoch;
        }
        // The account's leaf did not change from one tally to the other; its neighbour's did.
        vm.expectRevert(abi.encodeWithSelector(RewardPool.BadProof.selector));
        pool.claim(epochs[1], account, 100, old);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.BadProof.selector));
        pool.claim(epochs[0], account, 100, new_);
        pool.claim(epochs[0], account, 100, old);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.NothingToClaim.selector, 100));
        pool.claim(epochs[1], account, 100, new_);
    }

    function test_a_token_that_calls_back_gets_nothing_twice() public {
        address account = vm.addr(KEY);
        uint64 epoch = _tally(account, 100, EMISSION);
        vm.etch(address(token), type(Reentrant).runtimeCode);
        Reentrant evil = Reentrant(address(token));
        evil.aim(address(pool), abi.encodeCall(pool.claim, (epoch, account, 100, none)));
        pool.claim(epoch, account, 100, none);
        check(evil.asked() == 2 && evil.refused() == 2, "claimed again while it minted or paid");
        check(bytes4(evil.why()) == RewardPool.NothingToClaim.selector, "refused for another reason");
        check(pool.claimed(account) == 100 && pool.minted() == EMISSION && evil.moved() == 100, "claimed");
        evil.aim(address(0), "");
        pool.payUsage(0, 1000);
        uint256 due = pool.attestorsDue();
        evil.aim(address(pool), abi.encodeCall(pool.payAttestors, ()));
        pool.payAttestors();
        check(evil.asked() == 4 && evil.refused() == 4, "paid again while it paid");
        check(bytes4(evil.why()) == RewardPool.NothingToDo.selector, "refused for another reason");
        check(due >= 4 && evil.created() + pool.attestorsDue() == due, "paid");
    }

    function test_a_proof_grows_stale_when_the_ring_wraps_and_loses_nothing() public {
        address account = vm.addr(KEY);
        uint64 epoch = _tally(account, 100, EMISSION);
        uint64 last;
        for (uint256 i = 0; i < 64; ++i) last = _tally(account, 100, EMISSION);
        vm.expectRevert(abi.encodeWithSelector(CheckpointHub.NotActive.selector, epoch));
        pool.claim(epoch, account, 100, none);
        pool.claim(last, account, 100, none);
        check(token.balanceOf(account) == 100, "paid");
    }

    function test_a_root_that_says_more_than_its_promise_pays_the_promise() public {
        address account = vm.addr(KEY);
        uint64 epoch = _tally(account, 500, 300);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.OverPromised.selector, 500, 300));
        pool.claim(epoch, account, 500, none);
        pool.claim(_tally(account, 300, 300), account, 300, none);
        // The balance is empty and all that was promised is minted.
        epoch = _tally(address(this), 1, 300);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.OverPromised.selector, 1, 0));
        pool.claim(epoch, address(this), 1, none);
        // Fees are somebody's, but not for an old promise.
        token.approve(address(pool), 1000);
        pool.payUsage(0, 1000);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.OverPromised.selector, 1, 0));
        pool.claim(epoch, address(this), 1, none);
    }

    function test_a_claim_against_an_older_checkpoint_works_after_a_newer_one_paid() public {
        address account = vm.addr(KEY);
        uint64 old = _tally(account, 100, 100);
        uint64 later = _tally(address(this), 400, 500);
        pool.claim(later, address(this), 400, none);
        pool.claim(old, account, 100, none);
        check(token.balanceOf(account) == 100 && pool.minted() == 500, "paid");
    }

    function test_usage_is_split_and_raises_what_may_be_paid() public {
        token.approve(address(pool), type(uint256).max);
        uint256 supply = token.totalSupply();
        pool.payUsage(keccak256("model"), 1001);
        // 1000, 1500 and 500 ten-thousandths, rounded down; contributors get the rest.
        check(token.balanceOf(providers) == 100 && token.balanceOf(treasury) == 50, "paid at once");
        check(pool.attestorsDue() == 150 && pool.fees() == 701, "owed");
        check(token.totalSupply() == supply - 851, "burned until it is claimed");
        check(pool.funded(1) == EMISSION + 701, "funded");
        pool.payAttestors();
        for (uint256 i = 0; i < 4; ++i) {
            check(token.balanceOf(vm.addr(attestors[i])) == 37, "attestors");
        }
        check(pool.attestorsDue() == 2, "what does not divide waits");
        vm.expectRevert(abi.encodeWithSelector(RewardPool.NothingToDo.selector));
        pool.payAttestors();
        vm.expectRevert(abi.encodeWithSelector(RewardPool.NothingToDo.selector));
        pool.payUsage(0, 0);
    }

    function test_emission_ends_at_the_cap() public {
        uint128 most = uint128(CAP - GENESIS);
        check(pool.funded(100) == 100 * EMISSION && most == 100 * EMISSION, "up to the cap");
        check(pool.funded(101) == most && pool.funded(type(uint64).max) == most, "no further");
        _found(most);
        address account = vm.addr(KEY);
        pool.claim(_tally(account, most, most), account, most, none);
        check(token.totalSupply() == CAP, "the cap is reached");
        // A fee burns supply, so that paying it out again stays under the cap.
        token.approve(address(pool), 1000);
        pool.payUsage(0, 1000);
        pool.claim(_tally(account, most + 700, most + 700), account, most + 700, none);
        check(token.balanceOf(account) == most + 700 && token.totalSupply() == CAP - 150, "fees");
    }

    function test_nobody_but_the_pool_mints_and_never_over_the_cap() public {
        vm.expectRevert(abi.encodeWithSelector(Token.NotThePool.selector, address(this)));
        token.mint(address(this), 1);
        uint256 left = CAP - token.totalSupply();
        vm.startPrank(address(pool));
        token.mint(address(this), left);
        vm.expectRevert(abi.encodeWithSignature("ERC20ExceededSafeSupply(uint256,uint256)", CAP + 1, CAP));
        token.mint(address(this), 1);
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(Token.CapTooLarge.selector, 1 << 128));
        new Token("", "", 1 << 128, address(pool));
    }

    function test_a_pool_that_is_wired_wrong_is_not_deployed() public {
        address[] memory nobody = new address[](0);
        uint256[] memory nothing = new uint256[](0);
        RewardPool.Splits memory splits = RewardPool.Splits(7000, 1000, 1500, 500);
        vm.expectRevert(abi.encodeWithSelector(RewardPool.WiredWrong.selector));
        new RewardPool(token, hub, registry, treasury, providers, 1, splits, nobody, nothing);
    }

    function test_votes_count_time() public {
        check(token.clock() == block.timestamp, "clock");
        token.delegate(address(this));
        vm.warp(block.timestamp + 1);
        check(token.getPastVotes(address(this), block.timestamp - 1) == GENESIS, "votes");
    }
}

/// @notice A token of nobody's that makes a call of its own whenever it is told to mint or to pay.
contract Reentrant {
    uint256 public asked;
    uint256 public refused;
    uint256 public moved;
    uint256 public created;
    bytes public why;
    address private _target;
    bytes private _call;

    /// @dev It lies where the token was, so all that it counts is set.
    function aim(address target, bytes calldata call_) external {
        (asked, refused, moved, created) = (0, 0, 0, 0);
        (_target, _call) = (target, call_);
        why = "";
    }

    function balanceOf(address) external pure returns (uint256) {
        return 0;
    }

    function burnFrom(address, uint256) external {}

    function transferFrom(address, address, uint256) external pure returns (bool) {
        return true;
    }

    function mint(address, uint256 amount) external {
        created += amount;
        _strike();
    }

    function transfer(address, uint256 amount) external returns (bool) {
        moved += amount;
        _strike();
        return true;
    }

    function _strike() private {
        if (_target == address(0)) return;
        ++asked;
        (bool done, bytes memory said) = _target.call(_call);
        if (!done) (refused, why) = (refused + 1, said);
    }
}
