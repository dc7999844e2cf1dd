"""The sums of a round that is not decided yet, on disk before this peer attests the record that follows from them.

If everybody loses power after the committee's votes and before the commit, the certified state would be gone with
the memory of those who computed it. State on disk plus these sums gives it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np

from averaging.aggregate import IntegerArray
from averaging.layout import Layout
from averaging.wide import wide_dtype
from peer.durable import storage_errors, sync_folder, write_file

_VERSION = 3
_DIGEST = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """What leads from one certified state to the next."""

    round: int
    before: bytes  # root of the state it applies to
    after: bytes  # root of the state it leads to
    sid: bytes
    members: int  # in the largest cohort, whose number sets the codec's levels
    tokens: tuple[int, ...]  # of each survivor, by peer id
    domains: tuple[int, ...]  # the data domains that they declared; empty if nobody did
    lost: tuple[int, ...]
    sums: tuple[IntegerArray, ...]  # one per chunk, the trailer last; ring words, or signed ones across cohorts

    @property
    def survivors(self) -> int:
        """How many updates are in the sums."""
        return len(self.tokens)

    @property
    def wide(self) -> bool:
        """Whether the sums were added up across cohorts."""
        return self.sums[0].dtype.kind == "i"

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
            "tokens": list(self.tokens),
            "domains": list(self.domains),
            "lost": list(self.lost),
            "wide": self.wide,
        }
        packed = cast(bytes, msgpack.packb(head, use_bin_type=True))
        parts: list[bytes | memoryview] = [len(packed).to_bytes(4, "big") + packed]
        parts += [ring.data.cast("B") for ring in self.sums]
        digest = sha256()
        for part in parts:
            digest.update(part)
        partial = path.with_suffix(".partial")
        with storage_errors(path.parent):
            write_file(partial, [*parts, digest.digest()])
            partial.replace(path)
            sync_folder(path.parent)

    @classmethod
    def load(cls, path: Path, layout: Layout) -> Prepared | None:
        """What was saved, or None when there is nothing whole: then the state is fetched from others."""
        try:
            data = path.read_bytes()
            data, digest = data[:-_DIGEST], data[-_DIGEST:]
            if sha256(data).digest() != digest:
                return None
            size = int.from_bytes(data[:4], "big")
            head: dict[str, Any] = msgpack.unpackb(data[4 : 4 + size], raw=False)
            if head.pop("version") != _VERSION:
                return None
            sums = tuple(_cut(data[4 + size :], layout, wide=head.pop("wide")))
            lists = {name: tuple(head[name]) for name in ("tokens", "domains", "lost")}
            return cls(**{**head, **lists}, sums=sums)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _cut(data: bytes, layout: Layout, *, wide: bool) -> Iterable[IntegerArray]:
    start = 0
    for chunk in range(layout.total_chunks):
        dtype = wide_dtype(layout, chunk) if wide else layout.dtype(chunk)
        end = start + (layout.coordinates(chunk) if wide else layout.words(chunk)) * dtype.itemsize
        if end > len(data):
            raise ValueError("truncated")
        yield np.frombuffer(data[start:end], dtype=dtype)
        start = end
