"""Slashing: contradictions that are punished at once, and verdicts that are slow."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.ledger.model.hub import Hub
from tests.ledger.model.refused import ZERO, Refused, Signature
from tests.ledger.model.registry import Registry


@dataclass
class Slashing:
    """`punished`: (key, kind, place) of each offence. `cases`: [open, executable at] by a verdict's id."""

    registry: Registry
    hub: Hub
    punished: set[Hashable] = field(default_factory=set)
    cases: dict[bytes, tuple[bool, int]] = field(default_factory=dict)
    periods: dict[str, tuple[int, int]] = field(default_factory=dict)

    def report_checkpoints(
        self,
        first: Mapping[str, Any],
        second: Mapping[str, Any],
        signatures: tuple[Signature, Signature],
        evidence: bytes,
        reporter: str,
        now: int,
    ) -> None:
        """`evidence`: the name that the contract gives the offence."""
        place = [(header["runId"], header["forkNonce"], header["epoch"]) for header in (first, second)]
        if place[0] != place[1] or place[0][0] != self.hub.run or first == second:
            raise Refused("NotOnePlace")
        one, other = (signature.recovered() for signature in signatures)
        if one == ZERO or one != other:
            raise Refused("NotOneSigner", one, other)
        self.punish(one, (0, *place[0][1:]), evidence, reporter, now)

    def report_messages(
        self, key: str, good: tuple[bool, bool], place: Hashable, evidence: bytes, who: str, now: int
    ) -> None:
        """Two messages that contradict each other; `good`: whether each signature is the key's."""
        for index in (0, 1):
            if not good[index]:
                raise Refused("BadSignature", index)
        self.punish(key, place, evidence, who, now)

    def punish(self, key: str, place: Hashable, evidence: bytes, reporter: str, now: int) -> None:
        """Once for each offence."""
        if (key, place) in self.punished:
            raise Refused("AlreadyPunished", evidence)
        wallet = self.registry.liable(key, now)
        if wallet == ZERO:
            raise Refused("NobodyLiable", key)
        self.punished.add((key, place))
        self.registry.slash(wallet, self.hub.settings.equivocation_bps, reporter)

    def propose_verdict(
        self, run: bytes, bps: int, id_: bytes, now: int, bits: int, signatures: Sequence[Signature], odd: bool
    ) -> None:
        """Open a case by quorum."""
        settings = self.hub.settings
        if run != self.hub.run:
            raise Refused("WrongRunOf", run)
        if not 1 <= bps <= settings.most_bps:
            raise Refused("OverVerdictCap", bps, settings.most_bps)
        if id_ in self.cases:
            raise Refused("KnownVerdict", id_)
        weight, total = self.hub.signed(bits, signatures, odd)
        if 3 * weight <= 2 * total:
            raise Refused("NoQuorumOf", weight, total)
        self.cases[id_] = (True, now + settings.verdict_delay)

    def veto_verdict(self, id_: bytes, bits: int, signatures: Sequence[Signature], odd: bool) -> None:
        """Close a case by a third."""
        if not self.cases.get(id_, (False, 0))[0]:
            raise Refused("NoOpenVerdict", id_)
        weight, total = self.hub.signed(bits, signatures, odd)
        if 3 * weight < total:
            raise Refused("NoQuorumOf", weight, total)
        self.cases[id_] = (False, self.cases[id_][1])

    def execute_verdict(self, id_: bytes, key: str, bps: int, now: int) -> None:
        """Carry it out, within the cap of a period."""
        settings, (open_, executable_at) = self.hub.settings, self.cases.get(id_, (False, 0))
        if not open_:
            raise Refused("NoOpenVerdict", id_)
        if now < executable_at:
            raise Refused("TooEarly", executable_at)
        wallet = self.registry.liable(key, now)
        if wallet == ZERO:
            raise Refused("NobodyLiable", key)
        ends_at, taken = self.periods.get(wallet, (0, 0))
        if now >= ends_at:
            ends_at, taken = now + settings.verdict_period, 0
        if taken + bps > settings.most_bps:
            raise Refused("OverVerdictCap", taken + bps, settings.most_bps)
        self.cases[id_] = (False, executable_at)
        self.periods[wallet] = (ends_at, taken + bps)
        self.registry.slash(wallet, bps, ZERO)
