"""Branches: what happens when two chains of one run meet, and which of them stands.

A fork begins where a link has two certified successors, at least one of them a recovery (`averaging.recovery`). Of
two branches the one with more certified tokens behind the fork stands; of equal ones the one that did not begin with
a recovery; then the one whose first record has the smaller hash. Everybody computes that alike. A branch that would
roll back a round that is final (`Chain.finalized`, a checkpoint on the ledger) is refused, whatever it weighs.

Who meets a head that is not in its own chain asks with a *locator*: hashes of its own records, ever further apart. The
answer begins at the newest record that both have. A chain is only ever weighed by links that were all verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from averaging.ballots import Certificate
from averaging.chain import Chain, ChainRequest, ChainSegment, unpack
from averaging.messages import Knock
from averaging.record import Record
from dht.errors import ProtocolError, Refusal
from dht.identity import PeerId
from dht.wire import U64, Bytes32, Count, message

_RIVALS = 4
"""Branches that are being fetched at one time, at most one from each peer."""
_REMEMBERED = 64
"""Heads of branches that were found lighter."""
_SEEK_EVERY = 5
_SOUGHT_RECOVERIES = 8
_NEXT_ROUNDS = 2
"""Who is so many rounds ahead is on my chain, for all I know: it will be asked in the ordinary way."""


@message(tag=0x58, cap=4096)
@dataclass(frozen=True, slots=True)
class BranchRequest:
    """Send me what follows the newest of these records that is in your chain: rounds, newest first, and hashes."""

    rounds: Annotated[tuple[U64, ...], Count(1, 72)]
    hashes: Annotated[tuple[Bytes32, ...], Count(1, 72)]


def locator(chain: Chain) -> BranchRequest:
    """Records of a chain at distances 0, 1, 2, 4, ... from its head, and the founding."""
    head = chain.head.round
    rounds = [head, *(head - (1 << k) for k in range(64) if 1 << k < head)]
    rounds += [0] if head else []
    return BranchRequest(tuple(rounds), tuple(chain.record(round_).hash() for round_ in rounds))


def newest_shared(chain: Chain, request: BranchRequest) -> int | None:
    """The newest round of a locator whose record is in the chain, too; None when not even the founding is."""
    for round_, value in zip(request.rounds, request.hashes, strict=False):
        if round_ <= chain.head.round and chain.record(round_).hash() == value:
            return round_
    return None


def fork_round(one: Chain, other: Chain) -> int:
    """The last round up to which two chains of one founding are the same."""
    low, high = 0, min(one.head.round, other.head.round)
    while low < high:  # records name their parents: what is the same at a round is the same at all before it
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one.record(middle) == other.record(middle) else (low, middle - 1)
    return low


def tokens_after(chain: Chain, round_: int) -> int:
    """Tokens in the certified records after a round."""
    records = (chain.record(number) for number in range(round_ + 1, chain.head.round + 1))
    return sum(survivor.tokens for record in records for survivor in record.survivors)


def stands_against(rival: Chain, mine: Chain) -> bool:
    """Whether `rival` stands and `mine` is given up. Of two that differ exactly one stands, whoever asks."""
    fork = fork_round(rival, mine)
    if rival.head.round == fork:
        return False
    if mine.head.round == fork:
        return True
    weights = [tokens_after(chain, fork) for chain in (rival, mine)]
    if weights[0] != weights[1]:
        return weights[0] > weights[1]
    first, own = rival.record(fork + 1), mine.record(fork + 1)
    return (first.recovery, first.hash()) < (own.recovery, own.hash())


def still_held(state_round: int | None, old: Chain, new: Chain) -> int | None:
    """Whose state the state of round `state_round` of a branch is on the one that stands instead; None if nobody's."""
    fork = fork_round(old, new)
    if state_round is None or state_round <= fork:
        return state_round
    return fork if old.state_root(min(state_round, old.head.round)) == new.state_root(fork) else None


class Branches:
    """What one peer knows of other branches than its own."""

    def __init__(self) -> None:
        self._rivals: dict[PeerId, Chain] = {}
        self._lighter: dict[bytes, int] = {}
        self._turn = 0

    def foreign(self, chain: Chain, knock: Knock) -> bool:
        """Whether a peer's head is, or may be, on another branch than mine."""
        if knock.known == 0:
            return False
        if knock.known - 1 > chain.head.round:
            return knock.known - 1 > chain.head.round + _NEXT_ROUNDS
        return chain.record(knock.known - 1).hash() != knock.head

    def sought(self, chain: Chain, me: PeerId) -> PeerId | None:
        """Whom to knock at, at every fifth call: in turn those whom the recoveries in my chain went on without."""
        self._turn += 1
        if self._turn % _SEEK_EVERY:
            return None
        recent = chain.recoveries[-_SOUGHT_RECOVERIES:]
        apart = dict.fromkeys(peer for _, missing in recent for peer in missing)
        lost = [peer for peer in apart if peer not in chain.committee() and peer != me]
        return lost[self._turn // _SEEK_EVERY % len(lost)] if lost else None

    def take(self, chain: Chain, sender: PeerId, segment: ChainSegment) -> tuple[Chain, list[object]]:
        """Take a peer's segment: the chain that stands now (mine, extended in place, or another), and what to answer.

        Raises ProtocolError at the first bad link; the good ones of my own chain before it stay, since each proves
        itself. Also for a fork without a recovery (EQUIVOCATION: a quorum signed twice), or one before a final round.
        """
        if segment.founding.body != chain.founding.body:
            raise ProtocolError(Refusal.BAD_HASH, "the segment is of another founding")
        links = [unpack(link) for link in segment.links]
        news = [link for link in links if not chain.holds(link[0])]
        if not news:  # we share all of it; what we do not may come on the next page
            more = bool(links) and links[-1][0].round < segment.head_round
            return chain, [ChainRequest(links[-1][0].round)] if more else []
        if news[0][0].parent == chain.beacon:
            for record, certificate in news:
                chain.append(record, certificate)
            return chain, []
        fork = self._lighter.get(links[-1][0].hash())
        if fork is not None:  # weighed before, and mine has only grown: verifying it again would be work for nothing
            return chain, [chain.segment(fork)]
        rival = self._rival(chain, sender, news)
        return (chain, [locator(chain)]) if rival is None else self._weigh(chain, sender, rival, segment.head_round)

    def _rival(self, chain: Chain, sender: PeerId, links: list[tuple[Record, Certificate]]) -> Chain | None:
        """The branch that the links lead to, verified; None when they hang in the air."""
        known = self._rivals.pop(sender, None)
        if known is not None:
            links = [link for link in links if not known.holds(link[0])]
            if links and links[0][0].parent == known.beacon:
                return _extended(known, links)
        first = links[0][0] if links else None
        if first is None or not 1 <= first.round <= chain.head.round:
            return None
        if chain.record(first.round - 1).hash() != first.parent:
            return None
        if not first.recovery and not chain.record(first.round).recovery:
            raise ProtocolError(Refusal.EQUIVOCATION, f"another record of round {first.round}")
        return _extended(chain.branch(first.round - 1), links)

    def _weigh(self, chain: Chain, sender: PeerId, rival: Chain, announced: int) -> tuple[Chain, list[object]]:
        fork = fork_round(chain, rival)
        if fork < chain.finalized:
            raise ProtocolError(Refusal.EQUIVOCATION, f"a branch from round {fork}; {chain.finalized} is final")
        if stands_against(rival, chain):
            return rival, []
        if rival.head.round < announced:
            if len(self._rivals) >= _RIVALS:
                self._rivals.pop(next(iter(self._rivals)))
            self._rivals[sender] = rival
            return chain, [ChainRequest(rival.head.round)]
        if len(self._lighter) >= _REMEMBERED:
            self._lighter.pop(next(iter(self._lighter)))
        self._lighter[rival.beacon] = fork
        return chain, [chain.segment(fork)]


def _extended(chain: Chain, links: list[tuple[Record, Certificate]]) -> Chain:
    for record, certificate in links:
        chain.append(record, certificate)
    return chain
