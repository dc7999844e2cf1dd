// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {CheckpointHub} from "src/CheckpointHub.sol";
import {PeerRegistry} from "src/PeerRegistry.sol";
import {RewardPool} from "src/RewardPool.sol";
import {Token} from "src/Token.sol";
import {Handler} from "./Handler.sol";
import {check} from "./Vm.sol";

contract InvariantsTest {
    Handler private handler;
    Token private token;
    PeerRegistry private registry;
    CheckpointHub private hub;
    RewardPool private pool;

    function setUp() public {
        handler = new Handler();
        (address at0, address at1, address at2, address at3,) = handler.contracts();
        (token, registry, hub, pool) = (Token(at0), PeerRegistry(at1), CheckpointHub(at2), RewardPool(at3));
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function invariant_nothing_was_allowed_that_should_not_be() public view {
        check(handler.wrongCount() == 0, handler.wrongCount() == 0 ? "" : handler.wrongs(0));
    }

    function invariant_the_registry_holds_all_stakes_and_no_more_was_slashed() public view {
        uint256 sum = 0;
        for (uint256 i = 0; i < handler.PEERS(); ++i) {
            (, uint128 stake, uint128 unbonding,,) = registry.peer(handler.wallet(i));
            sum += stake + unbonding;
        }
        check(sum == handler.staked(), "stakes do not add up");
        check(token.balanceOf(address(registry)) == sum + registry.burnable(), "the registry lacks or hoards");
        check(handler.burned() + registry.burnable() <= handler.slashed(), "burned more than slashed");
    }

    function invariant_claims_stay_under_the_promise_and_promises_under_the_funds() public view {
        check(handler.claimed() <= handler.highestActive(), "claimed more than an active checkpoint promised");
        check(pool.minted() <= handler.highestActive(), "minted more than an active checkpoint promised");
        check(token.balanceOf(address(pool)) == pool.minted() - handler.claimed(), "the pool's balance");
        (uint64 epoch,,,) = hub.head();
        for (uint64 e = epoch; e > 0 && e + 64 > epoch; --e) {
            (,,,, uint128 promised) = hub.slot(e);
            check(promised <= pool.funded(e), "promised more than funded");
        }
    }

    function invariant_supply_is_what_was_minted_and_not_burned() public view {
        uint256 supply = 900_000e18 + pool.minted() - handler.usage() - handler.burned();
        check(token.totalSupply() == supply && supply <= token.cap(), "supply");
    }

    function invariant_claimed_is_what_was_paid() public view {
        for (uint256 i = 0; i < handler.keyCount(); ++i) {
            address key = handler.keys(i);
            check(pool.claimed(key) == handler.paid(key), "claimed");
        }
    }

    function invariant_the_chain_of_hashes_is_unbroken_and_the_ring_keeps_what_is_not_active() public view {
        (uint64 epoch, bytes32 hash,,) = hub.head();
        check(epoch == handler.headEpoch(), "the head moved by itself");
        check(epoch == 0 || hash == handler.hashOf(epoch), "the head is another checkpoint");
        // What is not active and the one that is active last, to which a rollback of all others returns.
        for (uint64 e = epoch; e > 0; --e) {
            (bytes32 found,, uint64 number,,) = hub.slot(e);
            check(number == e && found == handler.hashOf(e), "a slot was lost that a rollback may need");
            bool due = block.timestamp >= handler.proposedAt(e) + hub.window();
            check(due == hub.isActive(e), "active too soon, or too late");
            if (due) break;
        }
        (,, uint64 beyond,,) = hub.slot(epoch + 1);
        check(beyond == 0, "a rolled-back slot is left");
    }

    function invariant_a_key_has_one_owner_for_ever() public view {
        for (uint256 i = 0; i < handler.keyCount(); ++i) {
            address key = handler.keys(i);
            check(registry.walletOf(key) == handler.ownerOf(key), "a key changed hands");
        }
    }

    /// @dev The random walks above prove little if an action never happens in them.
    function test_the_walk_does_everything() public {
        uint256 seed = 1;
        for (uint256 i = 0; i < 600; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            _step(seed);
        }
        string[19] memory actions = [
            "enrol", "addStake", "requestUnbond", "withdraw", "withdraw refused", "rotateKey", "stealKey refused",
            "propose", "lie", "rollback", "claim", "claim and mint", "claim refused", "payUsage", "payAttestors",
            "equivocate", "equivocate refused", "judge", "judge refused"
        ];
        for (uint256 i = 0; i < actions.length; ++i) {
            check(handler.did(actions[i]) != 0, actions[i]);
        }
        check(handler.did("burn") != 0, "burn");
        (uint64 epoch,,,) = hub.head();
        check(epoch > 64, "the ring never wrapped");
        invariant_nothing_was_allowed_that_should_not_be();
        invariant_the_registry_holds_all_stakes_and_no_more_was_slashed();
        invariant_claims_stay_under_the_promise_and_promises_under_the_funds();
        invariant_supply_is_what_was_minted_and_not_burned();
        invariant_claimed_is_what_was_paid();
        invariant_the_chain_of_hashes_is_unbroken_and_the_ring_keeps_what_is_not_active();
        invariant_a_key_has_one_owner_for_ever();
    }

    function _step(uint256 seed) private {
        (uint8 a, uint8 b, uint96 amount) = (uint8(seed >> 8), uint8(seed >> 16), uint96(seed >> 24));
        uint256 action = seed % 16;
        if (action == 0) handler.wait(uint32(seed >> 120));
        else if (action == 1) handler.enrol(a, amount);
        else if (action == 2) handler.addStake(a, amount);
        else if (action == 3) handler.requestUnbond(a, amount);
        else if (action == 4) handler.withdraw(a);
        else if (action == 5) handler.rotateKey(a);
        else if (action == 6) handler.stealKey(a, b);
        else if (action == 7) handler.propose(a, [uint64(amount), 1, uint64(amount >> 32), 7], b % 8 == 0);
        else if (action == 8) handler.rollback(a);
        else if (action < 11) handler.claim(a, b % 8);
        else if (action == 11) handler.payUsage(uint64(amount));
        else if (action == 12) handler.payAttestors();
        else if (action == 13) handler.equivocate(a, b);
        else if (action == 14) handler.judge(a, uint16(amount));
        else handler.burn();
    }
}
