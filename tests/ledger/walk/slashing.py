"""Calls of Slashing."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from averaging.messages import Vote
from benchmarks.contracts import DAY, RUN, STRUCTS, Key
from dht.envelope import seal
from dht.identity import Identity
from ledger.eip712 import keccak
from tests.ledger.contract_driver import ANY, PEER_KEYS, SETTINGS, compact, read, struct_hash, word
from tests.ledger.walk.base import EVM, Chosen, Walk, accounts, bits, few, flaws, peers


class Slashes(Walk):
    """Reports and verdicts."""

    def __init__(self) -> None:
        super().__init__()
        self.verdicts: list[tuple[Any, ...]] = []

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
    def propose_verdict(self, key: Key, run: bytes, bps: int, case: int, chosen: Chosen, spoilt: str) -> None:
        self.open_case(key, run, bps, case, chosen, spoilt)

    @rule(key=st.sampled_from(PEER_KEYS[:4]), case=st.integers(3, 250), second=st.sampled_from([100, 400]))
    def two_verdicts(self, key: Key, case: int, second: int) -> None:
        """On one peer: if together they are over the cap of a period, the second waits for the next one."""
        for number, bps in ((case, 400), (case + 1, second)):
            self.open_case(key, RUN, bps, number, "all", "")
        for seconds in (0, SETTINGS.verdict_delay, SETTINGS.verdict_period):
            EVM.wait(seconds)
            for verdict in self.verdicts[-2:]:
                self.close_case(verdict, 0)

    def open_case(self, key: Key, run: bytes, bps: int, case: int, chosen: Chosen, spoilt: str) -> None:
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
    def veto_verdict(self, data: st.DataObject, known: bool, chosen: Chosen, spoilt: str) -> None:
        name = struct_hash("Verdict", data.draw(st.sampled_from(self.verdicts))) if known else b"x" * 32
        self.veto(name, chosen, spoilt)

    @rule(key=st.sampled_from(PEER_KEYS[:4]), case=st.integers(3, 250), chosen=few)
    def a_verdict_is_doubted(self, key: Key, case: int, chosen: Chosen) -> None:
        """As soon as it is there, by about a third."""
        self.open_case(key, RUN, 200, case, "all", "")
        self.veto(struct_hash("Verdict", self.verdicts[-1]) if self.verdicts else b"x" * 32, chosen, "")

    def veto(self, name: bytes, chosen: Chosen, spoilt: str) -> None:
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


def vote(key: Key, round_: int, survivors: int) -> Any:
    """A vote of averaging, signed."""
    return seal(Identity(key.secret), RUN, round_, Vote(b"s" * 32, 0b1111, survivors, b"m" * 32))
