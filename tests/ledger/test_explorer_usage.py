"""Usage fees from who pays to who is paid, through the commands, on the embedded chain: to the last unit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from ledger import signatures
from ledger.checkpoint import NOTHING, Checkpoint
from tests.ledger.net import Net, checkpoint, identity_file, propose
from tests.ledger.world import IDENTITIES, PEERS, UNIT

PAYER, SENDER, STAKER = 3, 2, 6
FIRST, SECOND = "10.000000000000000007", "0.30000000000000002"
"""Tokens. The first does not divide by ten thousand, the attestors' part of both not by five: what is left waits."""


class Accounts:
    """Balances of everybody whom fees reach, looked at again and again."""

    def __init__(self, net: Net, owners: Iterable[str]) -> None:
        self.net, self.owners = net, sorted(set(owners))
        self.before = self.now()

    def now(self) -> dict[str, int]:
        found = {owner: int(self.net.view("Token", "balanceOf", owner)) for owner in self.owners}
        return found | {"supply": int(self.net.view("Token", "totalSupply"))}

    def changes(self) -> dict[str, int]:
        """What came and went since the last look."""
        before, self.before = self.before, self.now()
        return {name: self.before[name] - units for name, units in before.items() if self.before[name] != units}


def done(said: tuple[int, str, str]) -> Any:
    code, out, err = said
    assert code == 0, err
    return json.loads(out)


def recipients(net: Net) -> list[str]:
    """Who is paid for each peer's key: the first one's wallet, else the key address."""
    keys = [f"0x{signatures.key_address(peer).hex()}" for peer in PEERS]
    return [net.wallet(STAKER), *keys[1:]]


def paid(net: Net, amount: str, model: str) -> dict[str, int]:
    """Pay a fee; its row in the history, in units."""
    arguments = ("usage", "pay", amount, "--model", model, "--json")
    calls = done(net.run(*arguments, by=PAYER))
    assert [row["call"] for row in calls][-1] == "RewardPool.payUsage"
    row = next(row for row in done(net.run("usage", "history", "--json")) if row["tx"] == calls[-1]["tx"])
    assert (row["payer"], row["model"]) == (net.wallet(PAYER), model)
    return {name: int(row[name]) for name in ("amount", "contributors", "data_providers", "attestors", "treasury")}


def added(*parts: tuple[str, int]) -> dict[str, int]:
    """Changes by owner; two parts may go to one."""
    found: dict[str, int] = {}
    for owner, units in parts:
        found[owner] = found.get(owner, 0) + units
    return {owner: units for owner, units in found.items() if units}


@pytest.fixture
def accounts(net: Net) -> Accounts:
    key = identity_file(net.folder, IDENTITIES[0])
    assert net.run("enrol", "5", "--identity", key, by=STAKER)[0] == 0
    owners = [net.view("RewardPool", name) for name in ("treasury", "dataProviders")]
    owners += [net.wallet(PAYER), net.ready["contracts"]["RewardPool"], *recipients(net)]
    return Accounts(net, owners)


def anchored(net: Net, epoch: int, parent: bytes, fees: tuple[int, ...]) -> Checkpoint:
    net.rpc("evm_increaseTime", 60)
    made, _ = checkpoint(net, epoch, parent, fees)
    propose(net, made)
    return made


def test_fees_are_split_counted_and_claimed_to_the_last_unit(net: Net, accounts: Accounts):
    treasury, providers = (net.view("RewardPool", name) for name in ("treasury", "dataProviders"))
    wallet, emission = net.wallet(PAYER), int(net.view("RewardPool", "emission"))

    first = paid(net, FIRST, "0x" + "ab" * 32)
    tenth = UNIT
    assert first == {
        "amount": 10 * UNIT + 7,
        "contributors": 7 * UNIT + 7,
        **dict.fromkeys(("data_providers", "attestors", "treasury"), tenth),
    }
    burned = first["contributors"] + first["attestors"]  # minted again when they are claimed
    assert accounts.changes() == added(
        (wallet, -first["amount"]), (providers, tenth), (treasury, tenth), ("supply", -burned)
    )

    # Paid before the first checkpoint it counts in the third, and in no other; the second fee in the fourth.
    made = [anchored(net, 1, NOTHING, (0,))]
    second = paid(net, SECOND, "0x" + "cd" * 32)
    accounts.changes()
    fees = (0, 0, first["contributors"], second["contributors"])
    for epoch in (2, 3):
        made.append(anchored(net, epoch, made[-1].hash(), fees[:epoch]))
    assert [each.cumulative_reward for each in made] == [emission, 2 * emission, 3 * emission + first["contributors"]]
    for epoch in (1, 2, 3):
        assert done(net.run("verify", str(epoch), "--json"))["good"]

    net.rpc("evm_increaseTime", 3600)
    net.rpc("evm_mine")
    _, tally = checkpoint(net, 3, made[1].hash(), fees[:3])
    for peer, owner in zip(PEERS, recipients(net), strict=True):
        leaf = tally.leaves[signatures.key_address(peer)]
        assert done(net.run("rewards", "show", str(peer), "--json"))["claimable"] == str(leaf)
        done(net.run("rewards", "claim", str(peer), "--json", by=SENDER))
        assert accounts.changes()[owner] == leaf
    assert net.view("Token", "balanceOf", net.ready["contracts"]["RewardPool"]) == 0
    assert sum(tally.leaves.values()) == net.view("RewardPool", "minted") == made[-1].cumulative_reward

    due = first["attestors"] + second["attestors"]
    done(net.run("usage", "pay-attestors", "--json", by=SENDER))
    share, rest = divmod(due, len(PEERS))
    assert accounts.changes() == added(*((owner, share) for owner in recipients(net)), ("supply", due - rest))
    assert net.view("RewardPool", "attestorsDue") == rest == 2

    made.append(anchored(net, 4, made[-1].hash(), fees))
    assert made[-1].cumulative_reward - made[-2].cumulative_reward == emission + second["contributors"]
    assert done(net.run("verify", "4", "--strict", "--json"))["complete"]
    funded = int(net.view("RewardPool", "funded", 4))
    assert made[-1].cumulative_reward == funded == 4 * emission + first["contributors"] + second["contributors"]
    given_too_soon(net, made[-1], fees)


def given_too_soon(net: Net, last: Checkpoint, fees: tuple[int, ...]) -> None:
    """A checkpoint that counts a fee in an epoch too early is found out, although a quorum signed it."""
    fee = paid(net, "1", "0x" + "ef" * 32)  # after the fourth checkpoint: counts in the seventh
    anchored(net, 5, last.hash(), (*fees, fee["contributors"]))
    code, out, _ = net.run("verify", "5", "--json")
    wrong = {each["what"] for each in json.loads(out)["findings"] if each["verdict"] == "bad"}
    assert code == 1 and "tally root" in wrong
