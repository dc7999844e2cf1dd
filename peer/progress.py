"""What a model that trains on while rounds are aggregated has learned since its last update was taken.

Blocking training needs no such thing: local progress is `certified - local`. Here the running model, the certified
state and the update on its way are three different things. `since` is where the model was when the last update was
taken, moved along with every state that has landed since; so `since - local` is in no update yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from peer.outer import Vector

_SLICE = 1 << 20  # elements at a time, so that what is in between stays small


class Progress:
    """One float32[D] beside the model's own. All vectors are float32[D]; the caller keeps the model still meanwhile."""

    def __init__(self, local: Vector) -> None:
        """Begin at the model's present parameters."""
        self.since = local.copy()

    def take(self, local: Vector, residual: Vector) -> None:
        """residual += progress: it is in the update now, and counts no more as progress."""
        for part in _slices(local):
            residual[part] += self.since[part] - local[part]
            self.since[part] = local[part]

    def land(self, certified: Vector, local: Vector, residual: Vector) -> Vector:
        """Begin at the newly certified state; returns the new local parameters, `certified - progress - residual`.

        What no sum took up becomes progress again: the residual is empty afterwards.
        """
        moved = np.empty_like(self.since)
        for part in _slices(local):
            np.subtract(certified[part], self.since[part] - local[part] + residual[part], out=moved[part])
            self.since[part] = certified[part]
        residual[:] = 0.0
        return moved

    def made(self, local: Vector) -> Vector:
        """The progress that is in no update yet, with the sign of an update (global minus local); a copy."""
        return self.since - local

    def go_on(self, certified: Vector, residual: Vector, made: Vector) -> Vector:
        """After a restart: with the residual and the progress that were saved; the local parameters."""
        np.subtract(certified, residual, out=self.since)
        return self.since - made

    def start_over(self, certified: Vector, residual: Vector) -> Vector:
        """Forget the progress; returns the local parameters, `certified - residual`, to be read at once."""
        return np.subtract(certified, residual, out=self.since)


def _slices(vector: Vector) -> Iterator[slice]:
    return (slice(start, start + _SLICE) for start in range(0, len(vector), _SLICE))
