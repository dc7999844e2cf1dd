"""Exactly once: whatever goes wrong between deciding to send and knowing that it is mined."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from dht.errors import ConfigError, LockedError, UnreachableError
from ledger.chain.errors import RevertedError, UnfundedError
from ledger.chain.journal import Intent, Journal
from ledger.chain.wallet import Wallet
from tests.ledger.chains import (
    ALICE,
    BOB,
    ERROR,
    FUNDED,
    GWEI,
    ONCE,
    count,
    deploy_counter,
    init_code,
    receipt,
    send,
    signed,
)


class Crash(BaseException):
    """The process ends here."""


def count_up(counter: str, key: str = "count/1") -> Intent:
    return Intent(key, bytes.fromhex(counter[2:]), b"")


def crash_on(method: str, times: int = 1):
    """A fault that ends the process at the first `times` calls of that method."""
    left = [times]

    def fault(called, params):
        if called == method and left[0]:
            left[0] -= 1
            raise Crash

    return fault


async def nonce_of(rpc, wallet=ALICE) -> int:
    return int(await rpc.call("eth_getTransactionCount", [wallet.address, "latest"]), 16)


async def head_of(rpc):
    return await rpc.call("eth_getBlockByNumber", ["latest", False])


def reopened(open_sender, rpc, **policy):
    """The next process: the journal's lock went with the last one."""
    open_sender.journals.pop().close()
    return open_sender(rpc, **policy)


async def test_it_lands_and_asking_again_sends_nothing(rpc, counter, open_sender):
    sender = open_sender(rpc)
    first = await sender.land(count_up(counter))
    again = await sender.land(count_up(counter))
    assert first["transactionHash"] == again["transactionHash"]
    assert (await count(rpc, counter), await nonce_of(rpc), len(rpc.sent)) == (1, 1, 2)  # one is the counter's creation
    await sender.land(count_up(counter, "count/2"))
    assert await count(rpc, counter) == 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", ["eth_sendRawTransaction", "eth_estimateGas", "eth_getTransactionReceipt"])
async def test_a_crash_around_any_call_sends_nothing_twice(rpc, counter, open_sender, when, method):
    setattr(rpc, when, crash_on(method))
    sender = open_sender(rpc)
    with pytest.raises(Crash):
        await sender.land(count_up(counter))
    rpc.before = rpc.after = None
    sender = reopened(open_sender, rpc)
    assert (await sender.land(count_up(counter)))["status"] == "0x1"
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 1)
    assert len(set(rpc.sent[1:])) == 1  # whatever was sent again was the same bytes


async def test_it_is_on_disk_before_it_is_sent(embedded, open_sender):
    counter = await deploy_counter(embedded)
    sender = open_sender(embedded)
    embedded.before = crash_on("eth_sendRawTransaction")
    with pytest.raises(Crash):
        await sender.land(count_up(counter))
    written = open_sender.journals[0].attempts("count/1")
    embedded.before = None
    await sender.land(count_up(counter))
    assert [attempt.raw for attempt in written] == embedded.sent[-1:]


async def test_one_name_stands_for_one_transaction(embedded, open_sender):
    counter = await deploy_counter(embedded)
    sender = open_sender(embedded)
    await sender.land(count_up(counter))
    with pytest.raises(ConfigError, match="other content"):
        await sender.land(Intent("count/1", bytes.fromhex(counter[2:]), b"\x03"))


async def test_a_stuck_transaction_is_outbid_until_it_lands(rpc, counter, open_sender, steps):
    await rpc.call("evm_setAutomine", [False])
    sender = open_sender(rpc, poll=10.0, replace_after=25.0)

    async def check_and_mine():
        # Thrice as long as the patience: by now two replacements wait in place of the first.
        await rpc.call("evm_mine")

    steps.plan = [None] * 8 + [check_and_mine]
    mined = await sender.land(count_up(counter))
    attempts = open_sender.journals[0].attempts("count/1")
    assert len(attempts) == 3
    assert {attempt.nonce for attempt in attempts} == {0}
    for newer, older in pairwise(attempts):
        assert 8 * newer.bid.most >= 9 * older.bid.most and 8 * newer.bid.tip >= 9 * older.bid.tip
    assert mined["transactionHash"] == "0x" + attempts[0].tx_hash.hex()
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 1)


async def test_a_base_fee_that_rises_over_the_bid_is_outbid(rpc, counter, open_sender, steps):
    await rpc.call("evm_setAutomine", [False])
    sender = open_sender(rpc, poll=10.0, replace_after=25.0)
    passed_by = []

    async def dearer():
        (bid,) = {attempt.bid for attempt in open_sender.journals[0].attempts("count/1")}
        await rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(2 * bid.most)])
        await rpc.call("evm_mine")
        passed_by.append((bid, await count(rpc, counter)))

    async def mine():
        await rpc.call("evm_mine")

    steps.plan = [dearer, None, None, mine]
    mined = await sender.land(count_up(counter))
    ((bid, counted),) = passed_by
    assert counted == 0 and int(mined["effectiveGasPrice"], 16) > bid.most
    assert len(open_sender.journals[0].attempts("count/1")) == 2
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 1)


async def test_no_bid_goes_over_the_cap(embedded, open_sender, steps):
    counter = await deploy_counter(embedded)
    await embedded.call("anvil_setNextBlockBaseFeePerGas", [hex(50 * GWEI)])
    sender = open_sender(embedded, poll=10.0, replace_after=15.0, most_fee=3 * GWEI)

    async def cheaper():
        await embedded.call("anvil_setNextBlockBaseFeePerGas", [hex(GWEI)])
        await embedded.call("evm_mine")

    steps.plan = [None] * 20 + [cheaper]
    mined = await sender.land(count_up(counter))
    attempts = open_sender.journals[0].attempts("count/1")
    assert max(attempt.bid.most for attempt in attempts) <= 3 * GWEI
    assert (int(mined["effectiveGasPrice"], 16) <= 3 * GWEI, await count(embedded, counter)) == (True, 1)


async def test_an_outage_is_waited_for(rpc, counter, open_sender, steps):
    down = [True]

    def outage(method, params):
        if down[0]:
            raise UnreachableError("nobody answers")

    async def back():
        down[0] = False

    rpc.before = outage
    steps.plan = [None] * 20 + [back]
    assert (await open_sender(rpc).land(count_up(counter)))["status"] == "0x1"
    assert steps.taken > 20
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 1)


async def test_an_answer_that_is_lost_does_not_make_a_second_one(rpc, counter, open_sender):
    """The node took the transaction; its answer never came."""
    lost = [3]

    def lose(method, params):
        if method == "eth_sendRawTransaction" and lost[0]:
            lost[0] -= 1
            raise UnreachableError("the connection broke")

    rpc.after = lose
    await open_sender(rpc).land(count_up(counter))
    assert lost[0] < 3
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 1)


async def test_two_programs_with_one_account_both_land_once(rpc, counter, open_sender, steps):
    """The other one's transaction takes the nonce after ours was signed and before it was sent."""
    other = open_sender(rpc, name="other")
    done = []

    async def other_first():
        done.append(await other.land(count_up(counter, "count/other")))

    sender = open_sender(rpc, name="journal")
    rpc.before = crash_on("eth_sendRawTransaction")
    with pytest.raises(Crash):
        await sender.land(count_up(counter))
    rpc.before = None
    await other_first()
    mined = await sender.land(count_up(counter))
    assert await count(rpc, counter) == 2
    assert await nonce_of(rpc) == 2
    assert mined["transactionHash"] != done[0]["transactionHash"]


async def test_a_lost_nonce_is_not_taken_anew_when_somebody_else_did_it(rpc, counter, open_sender):
    sender = open_sender(rpc)
    rpc.before = crash_on("eth_sendRawTransaction")
    with pytest.raises(Crash):
        await sender.land(count_up(counter))
    rpc.before = None
    await receipt(rpc, signed(ALICE, 0, counter))

    async def fulfilled():
        return await count(rpc, counter) > 0

    assert await sender.land(count_up(counter), fulfilled) is None
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 1)


async def test_nothing_is_sent_when_it_is_done_already(rpc, counter, open_sender):
    await receipt(rpc, signed(BOB, 0, counter))

    async def fulfilled():
        return await count(rpc, counter) > 0

    assert await open_sender(rpc).land(count_up(counter), fulfilled) is None
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
async def test_a_reorganisation_before_it_is_deep_enough(rpc, counter, open_sender, steps, depth):
    """Its block is taken back while we wait for confirmations: the same bytes go out again."""
    sender = open_sender(rpc, confirmations=6)

    async def mine():
        await rpc.call("evm_mine")

    async def reorganise():
        await rpc.call("anvil_reorg", [depth, []])
        assert await count(rpc, counter) == 0

    steps.plan = [mine] * (depth - 1) + [reorganise] + [mine] * 20
    mined = await sender.land(count_up(counter))
    head = await head_of(rpc)
    assert int(head["number"], 16) - int(mined["blockNumber"], 16) + 1 >= 6
    assert (await count(rpc, counter), await nonce_of(rpc)) == (1, 1)
    assert len(set(rpc.sent[1:])) == 1


async def test_a_reorganisation_afterwards_is_noticed_and_mended(rpc, counter, open_sender):
    sender = open_sender(rpc)
    await sender.land(count_up(counter))
    assert await sender.taken_back() == []
    await rpc.call("anvil_reorg", [1, []])
    assert await count(rpc, counter) == 0
    (gone,) = await sender.taken_back()
    assert gone == count_up(counter)
    await sender.land(gone)
    assert (await count(rpc, counter), await nonce_of(rpc), len(set(rpc.sent[1:]))) == (1, 1, 1)
    await rpc.call("anvil_mine", [hex(100)])
    assert await sender.taken_back() == []
    assert open_sender.journals[0].unsettled() == []


async def test_what_was_sent_before_and_is_taken_back_goes_first(rpc, counter, open_sender):
    """The second is signed with a nonce that nothing leads to any more; nor may it keep the first from its turn."""
    sender = open_sender(rpc)
    first, second = count_up(counter, "count/1"), count_up(counter, "count/2")
    await sender.land(first)
    rpc.before = crash_on("eth_sendRawTransaction")
    with pytest.raises(Crash):
        await sender.land(second)
    rpc.before = None
    await rpc.call("anvil_reorg", [1, []])
    assert (await count(rpc, counter), await nonce_of(rpc)) == (0, 0)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for intent in (second, first):
            group.create_task(sender.land(intent))
    assert (await count(rpc, counter), await nonce_of(rpc), len(set(rpc.sent[1:]))) == (2, 2, 2)


async def test_intents_that_were_taken_back_are_told_in_the_order_of_their_nonces(rpc, counter, open_sender):
    """Names sort otherwise: "count/10" comes before "count/9"."""
    sender = open_sender(rpc)
    names = ["count/9", "count/10", "count/11"]
    for name in names:
        await sender.land(count_up(counter, name))
    await rpc.call("anvil_reorg", [3, []])
    gone = await sender.taken_back()
    assert [intent.key for intent in gone] == names
    for intent in gone:
        await sender.land(intent)
    assert (await count(rpc, counter), len(set(rpc.sent[1:]))) == (3, 3)


async def test_what_lands_again_after_somebody_elses_is_looked_after_again(rpc, counter, open_sender):
    """Settled, since somebody else did it; then that was taken back, and it is done here after all."""
    sender, others = open_sender(rpc), [True]

    async def fulfilled():
        return others[0]

    assert await sender.land(count_up(counter), fulfilled) is None
    journal = open_sender.journals[0]
    assert journal.unsettled() == [] and journal.intent("count/1") == count_up(counter)
    assert journal.intent("count/2") is None
    others[0] = False
    mined = await sender.land(count_up(counter), fulfilled)
    assert journal.unsettled() == [(count_up(counter), bytes.fromhex(mined["transactionHash"][2:]))]


async def test_a_refusal_of_the_contract_is_told_before_it_costs(rpc, counter, open_sender):
    with pytest.raises(RevertedError) as refused:
        await open_sender(rpc).land(Intent("fail", bytes.fromhex(counter[2:]), b"\x01"))
    assert refused.value.data == ERROR
    assert await nonce_of(rpc) == 0


async def overtaken(rpc, steps) -> str:
    """A contract that refuses whoever comes second; Bob comes first, once Alice's transaction waits."""
    once = (await receipt(rpc, signed(BOB, 0, data=init_code(ONCE))))["contractAddress"]
    await rpc.call("evm_setAutomine", [False])

    async def overtake():
        await send(rpc, signed(BOB, 1, once, maxFeePerGas=9 * GWEI, maxPriorityFeePerGas=5 * GWEI))
        await rpc.call("evm_mine")
        await rpc.call("evm_mine")

    steps.plan = [overtake]
    return once


async def test_what_was_signed_and_is_refused_by_now_is_not_sent(rpc, open_sender):
    once = (await receipt(rpc, signed(BOB, 0, data=init_code(ONCE))))["contractAddress"]
    sender, intent = open_sender(rpc), Intent("once", bytes.fromhex(once[2:]), b"")
    rpc.before = crash_on("eth_sendRawTransaction")
    with pytest.raises(Crash):
        await sender.land(intent)
    rpc.before = None
    await receipt(rpc, signed(BOB, 1, once))
    with pytest.raises(RevertedError) as refused:
        await sender.land(intent)
    assert (refused.value.data, await nonce_of(rpc)) == (ERROR, 0)


async def test_what_waits_is_asked_about_no_more(rpc, open_sender, steps):
    """A node may count what waits with it as done, and would refuse the same once more."""
    once = (await receipt(rpc, signed(BOB, 0, data=init_code(ONCE))))["contractAddress"]
    await rpc.call("evm_setAutomine", [False])
    asked = []
    rpc.before = lambda method, params: asked.append(method)

    async def mine():
        await rpc.call("evm_mine")

    steps.plan = [None] * 3 + [mine]
    mined = await open_sender(rpc).land(Intent("once", bytes.fromhex(once[2:]), b""))
    assert (mined["status"], asked.count("eth_estimateGas")) == ("0x1", 1)


async def test_what_is_refused_once_it_is_mined_says_why(rpc, open_sender, steps):
    once = await overtaken(rpc, steps)
    sender = open_sender(rpc)
    for spent in (1, 1):  # asked again, it is refused before it costs anything
        with pytest.raises(RevertedError) as refused:
            await sender.land(Intent("once", bytes.fromhex(once[2:]), b""))
        assert (refused.value.data, await nonce_of(rpc)) == (ERROR, spent)


async def test_what_is_refused_because_somebody_else_did_it_is_done(rpc, open_sender, steps):
    once = await overtaken(rpc, steps)

    async def fulfilled():
        return int(await rpc.call("eth_getStorageAt", [once, "0x0", "latest"]), 16) == 1

    assert await open_sender(rpc).land(Intent("once", bytes.fromhex(once[2:]), b""), fulfilled) is None
    assert await nonce_of(rpc) == 1


async def test_what_is_mined_again_and_refused_there_has_not_landed(rpc, open_sender):
    once = (await receipt(rpc, signed(BOB, 0, data=init_code(ONCE))))["contractAddress"]
    sender, intent = open_sender(rpc), Intent("once", bytes.fromhex(once[2:]), b"")
    await sender.land(intent)
    raw = rpc.sent[-1]
    await rpc.call("anvil_reorg", [1, []])
    await rpc.call("evm_setAutomine", [False])
    await send(rpc, signed(BOB, 1, once, maxFeePerGas=9 * GWEI, maxPriorityFeePerGas=5 * GWEI))
    await send(rpc, raw)
    await rpc.call("evm_mine")
    await rpc.call("evm_mine")
    assert await nonce_of(rpc) == 1
    assert await sender.taken_back() == [intent]
    with pytest.raises(RevertedError):
        await sender.land(intent)


async def test_a_wallet_without_money_is_named(rpc, counter, open_sender):
    poor = Wallet(b"\x09" * 32)
    with pytest.raises(UnfundedError, match=poor.address):
        await open_sender(rpc, wallet=poor).land(count_up(counter))


async def test_intents_wait_their_turn(embedded, open_sender):
    counter = await deploy_counter(embedded)
    sender = open_sender(embedded)
    async with asyncio.TaskGroup() as group:
        for index in range(5):
            group.create_task(sender.land(count_up(counter, f"count/{index}")))
    assert (await count(embedded, counter), await nonce_of(embedded)) == (5, 5)


async def test_an_intent_that_was_left_behind_does_not_hold_up_the_next(embedded, open_sender):
    counter = await deploy_counter(embedded)
    sender = open_sender(embedded)
    embedded.before = crash_on("eth_sendRawTransaction")
    with pytest.raises(Crash):
        await sender.land(count_up(counter, "count/left"))
    embedded.before = None
    sender = reopened(open_sender, embedded)
    await sender.land(count_up(counter, "count/next"))
    await sender.land(count_up(counter, "count/left"))
    assert (await count(embedded, counter), await nonce_of(embedded)) == (2, 2)


async def test_money_moves_too(embedded, open_sender):
    await open_sender(embedded).land(Intent("pay", bytes.fromhex(BOB.address[2:]), b"", 5))
    assert int(await embedded.call("eth_getBalance", [BOB.address, "latest"]), 16) == FUNDED + 5


def test_one_journal_one_process(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(LockedError):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


async def test_the_same_bytes_again_are_no_second_transaction(rpc, counter):
    raw = signed(ALICE, 0, counter)
    await receipt(rpc, raw)
    with pytest.raises(Exception, match=r"already|nonce too low"):
        await send(rpc, raw)
    assert await count(rpc, counter) == 1
