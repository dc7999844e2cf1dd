"""What all rules share: the two sides, who signs, and that they show the same after each step."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from benchmarks.contracts import DAY, UNIT
from tests.ledger.contract_driver import PEER_KEYS, POOR, Both, found
from tests.ledger.model.hub import RING
from tests.ledger.model.refused import Refused

FIRED: Counter[tuple[str, str]] = Counter()
"""What came of all calls of all walks, by (function, refusal or "")."""
COMPARED: list[int] = []
"""Epoch after each step of all walks."""
WRAPPED: list[int] = []
"""Epochs of walks that went further than the hub remembers."""
EVM = found()

Chosen = str | frozenset[int]
accounts = st.integers(0, 4) | st.integers(0, POOR)
# 333 * UNIT + 7: what it leaves to attestors does not divide by three.
amounts = st.sampled_from([0, 1, 7, UNIT, 333 * UNIT + 7, 20_000 * UNIT, 10**6 * UNIT, 2**88])
peers = st.sampled_from(PEER_KEYS)
# Which attestors sign. Of three equals one is a third, and two are two thirds and no more.
few = st.sampled_from(["nobody", "first", "all but last"])
bits = st.just("all") | st.just("all") | st.just("all") | few | st.frozensets(st.integers(0, 6), max_size=6)
flaws = st.sampled_from([*[""] * 20, "foreign", "high", "zero", "other digest", "odd", "short"])


class Walk(RuleBasedStateMachine):
    """One walk; the EVM goes back to the founding after it."""

    def __init__(self) -> None:
        super().__init__()
        self._undone = EVM.undone()
        self._undone.__enter__()
        self.both = Both(EVM, FIRED)

    def teardown(self) -> None:
        if self.both.hub.epoch > RING:
            WRAPPED.append(self.both.hub.epoch)
        self._undone.__exit__(None, None, None)

    @invariant()
    def they_show_the_same(self) -> None:
        self.both.compare()
        COMPARED.append(self.both.hub.epoch)

    @rule(seconds=st.sampled_from([1, 59, 60, 600, DAY, 4 * DAY]))
    def wait(self, seconds: int) -> None:
        EVM.wait(seconds)
        FIRED["wait", ""] += 1

    @property
    def now(self) -> int:
        return EVM.time

    def votes(self, digest: bytes, chosen: Chosen, flaw: str) -> Any:
        """Bitmap and signatures, as the contract and as the model take them."""
        everyone = range(len(self.both.hub.attestors))
        named = {"all": everyone, "all but last": everyone[:-1], "first": everyone[:1], "nobody": ()}
        return self.both.votes(digest, set(named[chosen] if isinstance(chosen, str) else chosen), flaw)


def refuses(name: str, *values: Any) -> Any:
    """A model that always says this."""

    def refuse() -> None:
        raise Refused(name, *values)

    return refuse
