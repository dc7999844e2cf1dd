"""The certified chain as it lies on disk: written as frames with every state, checked again when it is read."""

from __future__ import annotations

from collections.abc import Sequence

from averaging.ballots import Decision
from averaging.chain import Chain, unpack
from averaging.record import Record
from dht.envelope import Envelope
from dht.errors import StorageError
from dht.identity import PeerId
from dht.wire import decode_as, encode
from peer.store import StoredRound


class ChainFrames:
    """The frames of one run's growing chain, each encoded once: a long run must not pay for its past every round."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._records: list[Record] = []

    def up_to(self, chain: Chain, last: int) -> list[bytes]:
        """The chain up to round `last` for the store: the founding envelope, then records with certificates."""
        self.leave(chain)
        if not self._frames:
            self._frames.append(encode(chain.founding))
            self._records.append(chain.record(0))
        for round_ in range(len(self._frames), last + 1):
            self._frames.append(encode(Decision(*(encode(part) for part in chain.link(round_)))))
            self._records.append(chain.record(round_))
        return self._frames[: last + 1]

    def leave(self, chain: Chain) -> list[Record]:
        """Forget what is not in `chain`, which stands now; the records that were given up, oldest first."""
        given_up: list[Record] = []
        while self._records and not chain.holds(self._records[-1]):
            given_up.append(self._records.pop())
            self._frames.pop()
        return given_up[::-1]


def chain_frames(chain: Chain, last: int) -> list[bytes]:
    """`ChainFrames.up_to` for who needs it once."""
    return ChainFrames().up_to(chain, last)


def open_chain(frames: Sequence[bytes], run: bytes, founder: PeerId) -> Chain:
    """The chain of stored frames. Raises ProtocolError when a link is not certified, StorageError when it is empty."""
    if not frames:
        raise StorageError("the stored state has no chain")
    chain = Chain(run, founder, decode_as(Envelope, frames[0]))
    for frame in frames[1:]:
        chain.append(*unpack(decode_as(Decision, frame)))
    return chain


def certify(stored: StoredRound, run: bytes, founder: PeerId) -> None:
    """For `StateStore.load_newest`: raises unless the stored chain certifies exactly this state in this round."""
    head = open_chain(stored.frames, run, founder).head
    if (head.round, head.state_root) != (stored.round, stored.root):
        raise StorageError(f"its chain certifies another state than that of round {stored.round}")
