"""The sums of a round that is not decided yet, on disk before this peer attests the record that follows from them.

If everybody loses power after the committee's votes and before the commit, the certified state would be gone with
the memory of those who computed it. State on disk plus these sums gives it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np

from averaging.layout import Layout, RingArray
from peer.durable import storage_errors

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """What leads from one certified state to the next."""

    round: int
    before: bytes  # root of the state it applies to
    after: bytes  # root of the state it leads to
    sid: bytes
    members: int  # in the roster, whose number sets the codec's levels
    survivors: int
    tokens: int  # the survivors' tokens: the sum of weights is tokens / cap
    lost: tuple[int, ...]
    sums: tuple[RingArray, ...]  # one per chunk, the trailer last

    def leading_to(self, root: bytes) -> Prepared:
        """The same, with the root of the state it leads to."""
        return replace(self, after=root)

    def save(self, path: Path) -> None:
        """Write and fsync. Raises StorageError."""
        head = {
            "version": _VERSION,
            "round": self.round,
            "before": self.before,
            "after": self.after,
            "sid": self.sid,
            "members": self.members,
            "survivors": self.survivors,
            "tokens": self.tokens,
            "lost": list(self.lost),
        }
        packed = cast(bytes, msgpack.packb(head, use_bin_type=True))
        partial = path.with_suffix(".partial")
        with storage_errors(path.parent):
            with partial.open("wb") as file:
                file.write(len(packed).to_bytes(4, "big") + packed)
                for ring in self.sums:
                    file.write(memoryview(ring).cast("B"))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @classmethod
    def load(cls, path: Path, layout: Layout) -> Prepared | None:
        """What was saved, or None when there is nothing whole: then the state is fetched from others."""
        try:
            data = path.read_bytes()
            size = int.from_bytes(data[:4], "big")
            head: dict[str, Any] = msgpack.unpackb(data[4 : 4 + size], raw=False)
            sums = tuple(_cut(data[4 + size :], layout))
            if head.pop("version") != _VERSION:
                return None
            return cls(**{**head, "lost": tuple(head["lost"])}, sums=sums)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _cut(data: bytes, layout: Layout) -> Iterable[RingArray]:
    start = 0
    for chunk in range(layout.total_chunks):
        end = start + layout.chunk_bytes(chunk)
        if end > len(data):
            raise ValueError("truncated")
        yield np.frombuffer(data[start:end], dtype=layout.dtype(chunk))
        start = end
