"""Random walks through the contracts' bytecode and a model of them: they never differ, in what they do or refuse."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from averaging.messages import Vote
from benchmarks.contracts import DAY, RUN, STRUCTS, UNIT, Key
from dht.envelope import seal
from dht.identity import Identity
from ledger.build import CONTRACTS
from ledger.eip712 import keccak
from ledger.standard_merkle import StandardMerkleTree
from tests.ledger.contract_driver import (
    ANY,
    ATTESTOR_KEYS,
    PEER_KEYS,
    POOR,
    Both,
    compact,
    found,
    read,
    struct_hash,
    word,
)
from tests.ledger.model.hub import RING, Slot
from tests.ledger.model.refused import ZERO, Refused

STEPS = 20_000
WALKS, LENGTH = 240, 100
COMPARED: list[int] = []
"""Epoch after each step of all walks."""
WRAPPED: list[int] = []
"""Epochs of walks that went further than the hub remembers."""
MODEL = Path(__file__).parent / "model"
ELSEWHERE = {
    *("BadGenesis", "BadSplits", "CapTooLarge", "SetNotWritten", "WindowTooLong", "WiredWrong"),  # of constructors
    *("Malformed", "NoContradiction", "UnknownKind"),  # of messages' bytes: test_message_evidence
}
"""Errors of the contracts that no walk meets."""
FIRED: Counter[tuple[str, str]] = Counter()

accounts = st.integers(0, 4) | st.integers(0, POOR)
amounts = st.sampled_from([0, 1, 7, UNIT, 333 * UNIT + 1, 20_000 * UNIT, 10**6 * UNIT, 2**88])
peers = st.sampled_from(PEER_KEYS)
# None: all attestors of now. An empty set: all but the last of them, which of three equals is two thirds and no more.
bits = st.none() | st.none() | st.none() | st.just(frozenset()) | st.frozensets(st.integers(0, 6), max_size=6)
flaws = st.sampled_from([*[""] * 20, "foreign", "high", "zero", "other digest", "odd", "short"])
PLACES = ("runId", "forkNonce", "epoch", "parent", "firstRound", "lastRound")
EVM = found()


def vote(key: Key, round_: int, survivors: int) -> Any:
    """A vote of averaging, signed."""
    return seal(Identity(key.secret), RUN, round_, Vote(b"s" * 32, 0b1111, survivors, b"m" * 32))


class Contracts(RuleBasedStateMachine):
    """One walk; the EVM goes back to the founding after it."""

    def __init__(self) -> None:
        super().__init__()
        self._undone = EVM.undone()
        self._undone.__enter__()
        self.both = Both(EVM, FIRED)
        self.trees: dict[int, tuple[dict[str, int], StandardMerkleTree]] = {}
        self.honest: dict[bytes, dict[str, int]] = {}
        """Leaves of each checkpoint without its lie: on them the next one builds."""
        self.verdicts: list[tuple[Any, ...]] = []

    def teardown(self) -> None:
        if self.both.hub.epoch > RING:
            WRAPPED.append(self.both.hub.epoch)
        self._undone.__exit__(None, None, None)

    @invariant()
    def they_show_the_same(self) -> None:
        self.both.compare()
        COMPARED.append(self.both.hub.epoch)

    @property
    def now(self) -> int:
        return EVM.time

    def votes(self, digest: bytes, chosen: frozenset[int] | None, flaw: str) -> Any:
        everyone = set(range(len(self.both.hub.attestors)))
        given = everyone if chosen is None else set(chosen) or everyone - {len(everyone) - 1}
        return self.both.votes(digest, given, flaw)

    @initialize()
    def four_are_enrolled(self) -> None:
        """Else most calls say no more than that nobody is."""
        for account in range(4):
            self.enrol_with(account, PEER_KEYS[account], 5000 * UNIT, "")

    @rule(seconds=st.sampled_from([1, 59, 60, 600, DAY, 4 * DAY]))
    def wait(self, seconds: int) -> None:
        EVM.wait(seconds)
        FIRED["wait", ""] += 1

    # --- tokens and stakes ------------------------------------------------------------------------------------------

    @rule(account=accounts, to=accounts, amount=amounts)
    def transfer(self, account: int, to: int, amount: int) -> None:
        owner, other = EVM.accounts[account], EVM.accounts[to]
        self.both.do(account, "Token", "transfer", (other, amount), lambda: self.both.token.move(owner, other, amount))

    @rule(account=accounts, key=peers, amount=amounts, flaw=flaws)
    def enrol(self, account: int, key: Key, amount: int, flaw: str) -> None:
        self.enrol_with(account, key, amount, flaw)

    def enrol_with(self, account: int, key: Key, amount: int, flaw: str) -> None:
        words, proof = self.binding(account, key, flaw)
        sender, values = EVM.accounts[account], (key.x, key.y, *words, amount, bytes(32))
        self.both.do(
            account,
            "PeerRegistry",
            "enrol",
            values,
            lambda: self.both.registry.enrol(sender, key.address, proof, amount),
        )

    @rule(account=accounts, key=peers, flaw=flaws)
    def rotate_key(self, account: int, key: Key, flaw: str) -> None:
        words, proof = self.binding(account, key, flaw)
        sender, values = EVM.accounts[account], (key.x, key.y, *words)
        self.both.do(
            account,
            "PeerRegistry",
            "rotateKey",
            values,
            lambda: self.both.registry.rotate_key(sender, key.address, proof, self.now),
        )

    def binding(self, account: int, key: Key, flaw: str) -> Any:
        digest = EVM.call("PeerRegistry", "bindingDigest", EVM.accounts[account])
        words = compact(key, digest, flaw)
        return words, read(digest, words)

    @rule(account=accounts, amount=amounts)
    def add_stake(self, account: int, amount: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(
            account, "PeerRegistry", "addStake", (amount,), lambda: self.both.registry.add_stake(sender, amount)
        )

    @rule(account=accounts, amount=amounts)
    def request_unbond(self, account: int, amount: int) -> None:
        sender = EVM.accounts[account]
        model = self.both.registry.request_unbond
        self.both.do(account, "PeerRegistry", "requestUnbond", (amount,), lambda: model(sender, amount, self.now))

    @rule(account=accounts)
    def withdraw(self, account: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(account, "PeerRegistry", "withdraw", (), lambda: self.both.registry.withdraw(sender, self.now))

    @rule(account=accounts)
    def set_metadata(self, account: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(
            account, "PeerRegistry", "setMetadata", (b"m" * 32,), lambda: self.both.registry.set_metadata(sender)
        )

    @rule(account=accounts)
    def burn(self, account: int) -> None:
        self.both.do(account, "PeerRegistry", "burn", (), self.both.registry.burn)

    @rule(account=accounts, amount=amounts)
    def what_only_contracts_may(self, account: int, amount: int) -> None:
        sender = EVM.accounts[account]
        self.both.do(account, "Token", "mint", (sender, amount), _refuses("NotThePool", sender))
        self.both.do(account, "PeerRegistry", "slash", (sender, 1, sender), _refuses("NotSlashing", sender))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @rule(
        pause=st.sampled_from([60, 60, 60, 600, 0]),
        flaw=st.sampled_from([*[""] * 20, *PLACES]),
        gains=st.lists(st.sampled_from([0, 1, 100 * UNIT, 250 * UNIT]), min_size=4, max_size=4),
        reward=st.sampled_from([*[0] * 12, -1, -(10**22), 10**7 * UNIT]),
        lies=st.sampled_from([False, False, True]),
        chosen=bits,
        spoilt=flaws,
    )
    def propose(
        self,
        pause: int,
        flaw: str,
        gains: list[int],
        reward: int,
        lies: bool,
        chosen: frozenset[int] | None,
        spoilt: str,
    ) -> None:
        self.next_checkpoint(pause, flaw, gains, reward, lies, chosen, spoilt)

    def next_checkpoint(
        self,
        pause: int,
        flaw: str,
        gains: list[int],
        reward: int,
        lies: bool,
        chosen: frozenset[int] | None,
        spoilt: str,
    ) -> None:
        EVM.wait(pause)
        both, hub = self.both, self.both.hub
        last = hub.last
        before = self.honest.get(last.hash, {})
        leaves = {key.address: before.get(key.address, 0) + more for key, more in zip(PEER_KEYS, gains, strict=False)}
        honest, promised = dict(leaves), max(0, sum(leaves.values()) + reward)
        if lies:
            leaves[PEER_KEYS[0].address] += 10**5 * UNIT
        tree = StandardMerkleTree((bytes.fromhex(key[2:]), value) for key, value in leaves.items())
        header: dict[str, Any] = {
            **{"runId": RUN, "forkNonce": hub.fork_nonce, "epoch": hub.epoch + 1, "parent": last.hash},
            **{"firstRound": last.last_round + 1, "lastRound": last.last_round + 10},
            **{"modelRoot": b"m" * 32, "dataRoot": b"d" * 32, "tallyRoot": tree.root},
            **{"cumulativeReward": promised, "peers": 4, "tokens": 5},
        }
        if flaw:
            spoil = {"lastRound": 0, "runId": b"x" * 32, "parent": b"x" * 32}
            header[flaw] = spoil.get(flaw, header[flaw] + 1 if isinstance(header[flaw], int) else b"")
        name = struct_hash("Checkpoint", list(header.values()))
        bitmap, words, signatures, odd = self.votes(both.digest(name), chosen, spoilt)
        slot = Slot(name, self.now, header["lastRound"], promised, leaves)
        funded = both.pool.funded(header["epoch"])
        if both.do(
            0,
            "CheckpointHub",
            "propose",
            (tuple(header.values()), bitmap, words),
            lambda: hub.propose(header, slot, funded, bitmap, signatures, odd),
        ):
            self.trees[hub.epoch] = (leaves, tree)
            self.honest[name] = honest

    @rule(count=st.sampled_from([3, 3, 3, 10, 40]))
    def epochs_pass(self, count: int) -> None:
        """So many in a row, that the hub's ring goes round in some walks."""
        for _ in range(count):
            self.next_checkpoint(60, "", [1, 0, 2, 0], 0, False, None, "")

    @rule(back=st.sampled_from([-1, 0, 1, 2, -1, 0, -2, 12]), chosen=bits, spoilt=flaws)
    def rollback(self, back: int, chosen: frozenset[int] | None, spoilt: str) -> None:
        hub = self.both.hub
        epoch = max(0, hub.epoch - back)
        digest = self.both.digest(struct_hash("Rollback", [RUN, hub.fork_nonce, epoch]))
        bitmap, words, signatures, odd = self.votes(digest, chosen, spoilt)
        self.both.do(
            0,
            "CheckpointHub",
            "rollback",
            (epoch, bitmap, words),
            lambda: hub.rollback(epoch, self.now, bitmap, signatures, odd),
        )

    @rule(
        to=st.lists(st.tuples(st.sampled_from(ATTESTOR_KEYS), st.sampled_from([*[1] * 8, 2, 5, 0])), max_size=6),
        nobody=st.sampled_from([False, False, False, True]),
        chosen=st.none() | st.none() | bits,
        spoilt=flaws,
    )
    def rotate(self, to: list[tuple[Key, int]], nobody: bool, chosen: frozenset[int] | None, spoilt: str) -> None:
        pairs = [(key.address, weight) for key, weight in to] + ([(ZERO, 1)] if nobody else [])
        addresses, weights = [key for key, _ in pairs], [weight for _, weight in pairs]
        lists = (
            word(64) + word(96 + 32 * len(pairs)) + b"".join(map(word, [len(pairs), *addresses, len(pairs), *weights]))
        )
        digest = self.both.digest(struct_hash("Rotation", [RUN, self.both.hub.rotation_nonce, keccak(lists)]))
        bitmap, words, signatures, odd = self.votes(digest, chosen, spoilt)
        self.both.do(
            0,
            "CheckpointHub",
            "rotate",
            (addresses, weights, bitmap, words),
            lambda: self.both.hub.rotate(pairs, bitmap, signatures, odd),
        )

    # --- rewards and fees -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.trees)
    @rule(
        data=st.data(),
        key=st.sampled_from(PEER_KEYS[:4]),
        more=st.sampled_from([0, 0, 0, 1, -1]),
        pause=st.sampled_from([0, 600]),
        account=accounts,
    )
    def claim(self, data: st.DataObject, key: Key, more: int, pause: int, account: int) -> None:
        hub = self.both.hub
        EVM.wait(pause)
        epoch = data.draw(st.sampled_from([hub.epoch, max(0, hub.epoch - 1), min(self.trees), hub.epoch + 1]))
        stale = data.draw(st.sampled_from([False, False, False, True]))
        leaves, tree = self.trees[min(self.trees) if stale or epoch not in self.trees else epoch]
        self.claim_with(epoch, key, more, leaves, tree, account)

    @rule(key=st.sampled_from(PEER_KEYS[:2]), lies=st.booleans())
    def an_epoch_is_claimed(self, key: Key, lies: bool) -> None:
        """By somebody whose leaf may say more than the checkpoint promises."""
        self.next_checkpoint(60, "", [100 * UNIT] * 4, 0, lies, None, "")
        EVM.wait(600)
        epoch = self.both.hub.epoch
        if epoch in self.trees:
            self.claim_with(epoch, key, 0, *self.trees[epoch], 0)

    def claim_with(
        self, epoch: int, key: Key, more: int, leaves: dict[str, int], tree: StandardMerkleTree, account: int
    ) -> None:
        hub = self.both.hub
        cumulative = max(0, leaves[key.address] + more)
        slot = hub.kept.get(epoch)
        proven = slot is not None and slot.leaves == leaves and leaves[key.address] == cumulative
        proof = tree.proof(bytes.fromhex(key.address[2:]))
        values = (epoch, key.address, cumulative, proof)
        model = self.both.pool.claim
        self.both.do(
            account, "RewardPool", "claim", values, lambda: model(epoch, key.address, cumulative, proven, self.now)
        )

    @rule(account=accounts, amount=amounts)
    def pay_usage(self, account: int, amount: int) -> None:
        payer = EVM.accounts[account]
        values = (b"m" * 32, amount)
        self.both.do(account, "RewardPool", "payUsage", values, lambda: self.both.pool.pay_usage(payer, amount))

    @rule(account=accounts)
    def pay_attestors(self, account: int) -> None:
        self.both.do(account, "RewardPool", "payAttestors", (), self.both.pool.pay_attestors)

    # --- slashing ---------------------------------------------------------------------------------------------------

    @rule(
        key=peers,
        place=st.tuples(st.integers(0, 1), st.integers(1, 3)),
        change=st.sampled_from([*[""] * 12, "epoch", "forkNonce", "runId", "same"]),
        spoilt=flaws,
        account=accounts,
    )
    def report_checkpoints(self, key: Key, place: tuple[int, int], change: str, spoilt: str, account: int) -> None:
        names = [member.split()[1] for member in STRUCTS["Checkpoint"].split(",")]
        first: dict[str, Any] = {name: b"h" * 32 if "Root" in name or name == "parent" else 1 for name in names}
        first |= {"runId": RUN, "forkNonce": place[0], "epoch": place[1]}
        second = first | ({} if change == "same" else {"modelRoot": b"other".ljust(32)})
        if change in first:
            second[change] = b"x" * 32 if change == "runId" else first[change] + 1
        digests = [self.both.digest(struct_hash("Checkpoint", list(header.values()))) for header in (first, second)]
        words = [*compact(key, digests[0], ""), *compact(key, digests[1], spoilt)]
        signatures = (read(digests[0], words[:2]), read(digests[1], words[2:]))
        evidence = keccak(word(key.address) + word(0) + keccak(word(place[0]) + word(place[1])))
        reporter = EVM.accounts[account]
        self.both.do(
            account,
            "Slashing",
            "reportCheckpoints",
            (tuple(first.values()), tuple(second.values()), words),
            lambda: self.both.slashing.report_checkpoints(first, second, signatures, evidence, reporter, self.now),
        )

    @rule(key=peers, round_=st.integers(1, 2), wrong=st.sampled_from([*[None] * 8, 0, 1]), account=accounts)
    def report_messages(self, key: Key, round_: int, wrong: int | None, account: int) -> None:
        pair = [vote(key, round_, survivors) for survivors in (0b11, 0b111)]
        words = [half for each in pair for half in (each.signature[:32], each.signature[32:])]
        good = [True, True]
        if wrong is not None:
            words[2 * wrong], good[wrong] = b"\1" * 32, False
        reporter = EVM.accounts[account]
        self.both.do(
            account,
            "Slashing",
            "reportMessages",
            (key.x, key.y, round_, pair[0].body, pair[1].body, words),
            lambda: self.both.slashing.report_messages(
                key.address, (good[0], good[1]), ("vote", round_), ANY, reporter, self.now
            ),
        )

    @rule(
        key=st.sampled_from(PEER_KEYS[:5]),
        run=st.sampled_from([*[RUN] * 9, b"x" * 32]),
        bps=st.sampled_from([1, 200, 400, 200, 400, 0, 501]),
        case=st.integers(0, 2),
        chosen=bits,
        spoilt=flaws,
    )
    def propose_verdict(
        self, key: Key, run: bytes, bps: int, case: int, chosen: frozenset[int] | None, spoilt: str
    ) -> None:
        self.open_case(key, run, bps, case, chosen, spoilt)

    @rule(key=st.sampled_from(PEER_KEYS[:4]), case=st.integers(3, 250), second=st.sampled_from([100, 400]))
    def two_verdicts(self, key: Key, case: int, second: int) -> None:
        """On one peer in one period: together they may be over the cap."""
        for number, bps in ((case, 400), (case + 1, second)):
            self.open_case(key, RUN, bps, number, None, "")
        for seconds in (0, DAY):
            EVM.wait(seconds)
            for verdict in self.verdicts[-2:]:
                self.close_case(verdict, 0)

    def open_case(self, key: Key, run: bytes, bps: int, case: int, chosen: frozenset[int] | None, spoilt: str) -> None:
        verdict = (run, 1, key.address, bps, bytes([case]) * 32)
        name = struct_hash("Verdict", verdict)
        bitmap, words, signatures, odd = self.votes(self.both.digest(name, "Slashing"), chosen, spoilt)
        model = self.both.slashing.propose_verdict
        if self.both.do(
            0,
            "Slashing",
            "proposeVerdict",
            (verdict, bitmap, words),
            lambda: model(run, bps, name, self.now, bitmap, signatures, odd),
        ):
            self.verdicts.append(verdict)

    @precondition(lambda self: self.verdicts)
    @rule(data=st.data(), known=st.sampled_from([True, True, False]), chosen=bits, spoilt=flaws)
    def veto_verdict(self, data: st.DataObject, known: bool, chosen: frozenset[int] | None, spoilt: str) -> None:
        name = struct_hash("Verdict", data.draw(st.sampled_from(self.verdicts))) if known else b"x" * 32
        digest = self.both.digest(struct_hash("Veto", [name]), "Slashing")
        bitmap, words, signatures, odd = self.votes(digest, chosen, spoilt)
        self.both.do(
            0,
            "Slashing",
            "vetoVerdict",
            (name, bitmap, words),
            lambda: self.both.slashing.veto_verdict(name, bitmap, signatures, odd),
        )

    @precondition(lambda self: self.verdicts)
    @rule(data=st.data(), pause=st.sampled_from([0, DAY, DAY, DAY, 10 * DAY]), account=accounts)
    def execute_verdict(self, data: st.DataObject, pause: int, account: int) -> None:
        EVM.wait(pause)
        self.close_case(data.draw(st.sampled_from(self.verdicts)), account)

    def close_case(self, verdict: tuple[Any, ...], account: int) -> None:
        name, key, bps = struct_hash("Verdict", verdict), verdict[2], verdict[3]
        model = self.both.slashing.execute_verdict
        self.both.do(account, "Slashing", "executeVerdict", (verdict,), lambda: model(name, key, bps, self.now))


def _refuses(name: str, *values: Any) -> Any:
    def refuse() -> None:
        raise Refused(name, *values)

    return refuse


def test_the_contracts_and_their_model_never_differ() -> None:
    walks = settings(
        max_examples=WALKS,
        stateful_step_count=LENGTH,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # to shrink a walk takes longer than a test may; the assertion says what differed
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Contracts, settings=walks)
    print(f"{len(COMPARED)} steps, {sum(FIRED.values())} calls, {len(WRAPPED)} walks past {RING} epochs")
    assert len(COMPARED) >= STEPS
    sources = "".join(path.read_text() for path in MODEL.glob("*.py"))
    refusals = set(re.findall(r'Refused\(\s*"(\w+)"', sources))
    declared = {name for path in CONTRACTS.glob("*.sol") for name in re.findall(r"error (\w+)\(", path.read_text())}
    assert refusals | declared - ELSEWHERE <= {name for _, name in FIRED}
    functions = {function for function, name in FIRED if not name}
    refused_only = {"mint", "slash"}  # they are for the pool and for Slashing
    assert functions | refused_only == {function for function, _ in FIRED}
    assert {
        ("executeVerdict", "OverVerdictCap"),
        ("rollback", "AlreadyActive"),
        ("claim", "OverPromised"),
    } <= FIRED.keys()
    assert WRAPPED, "the hub's ring never went round"
