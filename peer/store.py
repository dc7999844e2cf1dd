"""State on disk: what survives kill -9 and a full disk.

    DIR/rounds/00000012/    state.bin    header, parameters, momentum, scales, one after the other
                            leaves.bin   32 bytes per chunk
                            index.json   round, root, run id, hashes, list of chain segments; written last
    DIR/chain/              segments of 64 certified records each, named by position and hash, never changed
    DIR/local/              one peer's own training (optimizer, residual, data position), bound to a round
    DIR/damaged/            the last folder that failed its hashes, for whoever wants to look

A folder is written under a temporary name, each file and the folder fsynced, its index last, and then renamed; so
a folder with its name is whole, and what a crash leaves behind has another name. Two rounds are kept. Loading
checks every hash and falls back to the older round with a warning. Nothing uncertified is ever saved here.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from dht import merkle
from dht.errors import MurmurationError, StorageError
from peer.durable import clean, discard, new_folder, storage_errors, sync_folder, write_file, write_index
from peer.state import CanonicalState, StateSchema

log = logging.getLogger(__name__)
KEPT_ROUNDS = 2
SEGMENT_FRAMES = 64


@dataclass(frozen=True, slots=True)
class StoredRound:
    """A certified round found whole on disk. `frames` are the encoded certified records up to it."""

    round: int
    root: bytes
    leaves: tuple[bytes, ...]
    frames: tuple[bytes, ...]
    data: NDArray[np.uint8]  # memory-mapped state.bin

    def chunks(self, schema: StateSchema) -> Iterator[memoryview]:
        """The state's chunks in order, for `CanonicalState.from_chunks`."""
        return (_chunk(self.data, schema, index) for index in range(len(self.leaves)))


@dataclass(frozen=True, slots=True)
class LocalState:
    """A peer's own training after `round`: arrays by name (memory-mapped when loaded), and plain values."""

    round: int
    root: bytes
    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]


class StateStore:
    """The store of one peer in one run. One process at a time (the data folder is locked by its identity)."""

    def __init__(self, folder: Path, schema: StateSchema) -> None:
        """Open or create. Removes what an interrupted write left. Raises StorageError."""
        self.folder = folder
        self.schema = schema
        self._segments: list[tuple[tuple[bytes, ...], str]] = []
        with storage_errors(folder):
            for name in ("rounds", "chain", "local"):
                (folder / name).mkdir(parents=True, exist_ok=True)
                clean(folder / name)

    # -- certified rounds ----------------------------------------------------------------------------

    def save(
        self,
        round_number: int,
        root: bytes,
        leaves: Sequence[bytes],
        chunks: Iterable[bytes | memoryview],
        frames: Sequence[bytes],
        pinned: Sequence[int] = (),
    ) -> None:
        """Store a certified round: its state's chunks and leaves, and every certified record up to it.

        It is the newest from now on: later rounds on disk are of a branch that was given up, and go once this one is
        whole. `pinned` rounds stay besides the newest two. The caller has checked the certificate. Chain segments that
        are on disk already are not written again.
        Raises StorageError when the disk is full or the chunks do not have this root; older rounds stay.
        """
        if merkle.root(leaves) != root:
            raise StorageError(f"the state of round {round_number} does not have its certified root")
        with storage_errors(self.folder):
            segments = self._save_chain(frames)
            with new_folder(self.folder / "rounds", _name(round_number)) as partial:
                size = write_file(partial / "state.bin", _checked(chunks, leaves))
                write_file(partial / "leaves.bin", leaves)
                index = {"round": round_number, "root": root.hex(), "run": self.schema.run_id.hex(), "bytes": size}
                write_index(partial, index | {"segments": segments, "pinned": list(pinned)})
            for number in self.rounds():
                if number > round_number:
                    discard(self.folder / "rounds" / _name(number))
            self._prune()

    def drop(self, round_number: int) -> None:
        """Remove a round that is not wanted any more. Raises StorageError."""
        with storage_errors(self.folder):
            discard(self.folder / "rounds" / _name(round_number))

    def load_newest(self, certified: Callable[[StoredRound], None] | None = None) -> StoredRound | None:
        """The newest round whose hashes all hold, or None. Damaged ones are moved aside with a warning.

        `certified` may check that the frames certify (round, root); a round for which it raises one of the
        project's errors is skipped too, and stays on disk.
        """
        for number in sorted(self.rounds(), reverse=True):
            try:
                found = self._load(number)
            except (OSError, ValueError, KeyError, TypeError, MurmurationError) as error:
                log.warning("the state of round %d on disk is damaged (%s): trying an older one", number, error)
                self._set_aside(number)
                continue
            try:
                if certified is not None:
                    certified(found)
            except MurmurationError as error:
                log.warning("the state of round %d on disk is not certified (%s): trying an older one", number, error)
                continue
            with storage_errors(self.folder):
                self._prune()  # a writer that is killed again and again never gets to its own clearing up
            return found
        return None

    def load_state(self, stored: StoredRound) -> CanonicalState:
        """The stored state in memory, checked against its root once more."""
        return CanonicalState.from_chunks(self.schema, stored.chunks(self.schema), stored.root)

    def rounds(self) -> list[int]:
        """Rounds on disk, oldest first."""
        return sorted(int(path.name) for path in (self.folder / "rounds").iterdir() if path.name.isdecimal())

    def root(self, round_number: int) -> bytes | None:
        """The root of a round on disk, as its index says; None when it is not kept."""
        try:
            return bytes.fromhex(self._index(round_number)["root"])
        except (OSError, ValueError, KeyError):
            return None

    def vectors(self, round_number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Parameters and momentum of a round on disk, memory-mapped and not hashed. Raises StorageError."""
        with storage_errors(self.folder):
            data = _mapped(self.folder / "rounds" / _name(round_number) / "state.bin")
        header, size = self.schema.sections[:2]
        parts = [data[start : start + size].view("<f4") for start in (header, header + size)]
        return parts[0], parts[1]

    def _index(self, round_number: int) -> dict[str, Any]:
        return dict(json.loads((self.folder / "rounds" / _name(round_number) / "index.json").read_bytes()))

    def chunk(self, round_number: int, index: int) -> bytes | None:
        """A chunk of a kept round straight from disk, for peers that catch up; None when it is not kept."""
        if not 0 <= index < len(self.schema.chunks):
            return None
        try:
            # Read, not mapped: pages that strangers ask for would count as this peer's memory.
            with (self.folder / "rounds" / _name(round_number) / "state.bin").open("rb") as file:
                file.seek(self.schema.offset(index))
                return file.read(self.schema.chunk_length(index))
        except OSError:
            return None

    def leaves(self, round_number: int) -> tuple[bytes, ...] | None:
        """Leaf hashes of a kept round, or None."""
        try:
            return _split((self.folder / "rounds" / _name(round_number) / "leaves.bin").read_bytes())
        except OSError:
            return None

    def _load(self, number: int) -> StoredRound:
        path = self.folder / "rounds" / _name(number)
        index = self._index(number)
        if index["round"] != number or index["run"] != self.schema.run_id.hex():
            raise StorageError("it belongs to another round or run")
        leaves = _split((path / "leaves.bin").read_bytes())
        root = bytes.fromhex(index["root"])
        data = _mapped(path / "state.bin")
        if bytes(data[: len(self.schema.header)]) != self.schema.header:
            raise StorageError("its header is that of another model")
        if merkle.root(leaves) != root or len(leaves) != len(self.schema.chunks) or len(data) != index["bytes"]:
            raise StorageError("its leaves do not have its root")
        for chunk, leaf in enumerate(leaves):
            if merkle.leaf_hash(_chunk(data, self.schema, chunk)) != leaf:
                raise StorageError(f"chunk {chunk} does not have its hash")
        frames = tuple(frame for name in index["segments"] for frame in self._load_segment(name))
        return StoredRound(number, root, leaves, frames, data)

    def _set_aside(self, number: int) -> None:
        """Move a damaged round out of the way, or it would count as one of the two that are kept."""
        with storage_errors(self.folder):
            shutil.rmtree(self.folder / "damaged", ignore_errors=True)
            (self.folder / "rounds" / _name(number)).rename(self.folder / "damaged")

    def _prune(self) -> None:
        """Keep the newest rounds, those that the newest one pins, and the chain segments that they refer to."""
        rounds = self.rounds()
        try:
            pinned = self._index(rounds[-1]).get("pinned", []) if rounds else []
            kept = [number for number in rounds if number in rounds[-KEPT_ROUNDS:] or number in pinned]
            needed = {name for number in kept for name in self._index(number)["segments"]}
        except (OSError, ValueError, KeyError):  # damaged: keep everything, the next load sets it aside
            return
        for number in set(rounds) - set(kept):
            discard(self.folder / "rounds" / _name(number))
        for path in (self.folder / "chain").iterdir():
            if path.name not in needed:
                path.unlink()

    # -- chain segments ------------------------------------------------------------------------------

    def _save_chain(self, frames: Sequence[bytes]) -> list[str]:
        """Write the segments that are new; names of all of them in order."""
        groups = [tuple(frames[start : start + SEGMENT_FRAMES]) for start in range(0, len(frames), SEGMENT_FRAMES)]
        known = self._segments
        self._segments = []
        for position, group in enumerate(groups):
            # Comparing with the frames written last time is cheap: mostly they are the same objects.
            name = known[position][1] if position < len(known) and known[position][0] == group else None
            if name is None or not (self.folder / "chain" / name).exists():
                name = self._save_segment(position, group)
            self._segments.append((group, name))
        return [name for _, name in self._segments]

    def _save_segment(self, position: int, group: Sequence[bytes]) -> str:
        data: bytes = msgpack.packb(list(group), use_bin_type=True)
        name = f"{position:06d}-{sha256(data).hexdigest()}.bin"
        path = self.folder / "chain" / name
        partial = path.with_name(f".{name}")
        write_file(partial, [data])
        partial.replace(path)
        sync_folder(path.parent)
        return name

    def _load_segment(self, name: str) -> list[bytes]:
        data = (self.folder / "chain" / Path(name).name).read_bytes()
        if f"-{sha256(data).hexdigest()}.bin" not in name:
            raise StorageError(f"chain segment {name} does not have its hash")
        frames: list[bytes] = msgpack.unpackb(data)
        return frames

    # -- local training ------------------------------------------------------------------------------

    def save_local(self, local: LocalState) -> None:
        """Store a peer's own training, replacing the one before. Raises StorageError; the older one then stays."""
        with storage_errors(self.folder):
            before = self._local_folders()
            number = int(before[-1].name) + 1 if before else 0
            with new_folder(self.folder / "local", _name(number)) as partial:
                arrays = {name: np.asarray(array, order="C") for name, array in local.arrays.items()}
                layout = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
                digest = sha256()
                write_file(
                    partial / "arrays.bin", _hashed((_bytes_of(array) for array in arrays.values()), digest.update)
                )
                index = {"round": local.round, "root": local.root.hex(), "run": self.schema.run_id.hex()}
                index |= {"arrays": layout, "sha256": digest.hexdigest(), "facts": dict(local.facts)}
                write_index(partial, index)
            for path in before:
                discard(path)

    def load_local(self, round_number: int, root: bytes) -> LocalState | None:
        """What was saved after this certified round with this root, or None; damaged is skipped with a warning."""
        return next((local for local in self._locals() if (local.round, local.root) == (round_number, root)), None)

    def newest_local(self) -> LocalState | None:
        """What was saved last, after whatever round; damaged is skipped with a warning."""
        return next(self._locals(), None)

    def _locals(self) -> Iterator[LocalState]:
        for path in reversed(self._local_folders()):
            try:
                yield self._load_local(path)
            except (OSError, ValueError, KeyError, TypeError, StorageError) as error:
                log.warning("the local training on disk is damaged (%s): going on without it", error)

    def _load_local(self, path: Path) -> LocalState:
        index = json.loads((path / "index.json").read_bytes())
        data = _mapped(path / "arrays.bin")
        if index["run"] != self.schema.run_id.hex() or sha256(data.data).hexdigest() != index["sha256"]:
            raise StorageError("it does not have its hash, or belongs to another run")
        arrays: dict[str, NDArray[Any]] = {}
        start = 0
        for name, (dtype, shape) in index["arrays"].items():
            count = int(np.prod(shape, dtype=np.int64))
            stop = start + count * np.dtype(dtype).itemsize
            # Names and sizes alternate between dtypes, so a view may be unaligned; numpy and torch copy from it anyway.
            arrays[name] = data[start:stop].view(np.dtype(dtype)).reshape(shape)
            start = stop
        return LocalState(index["round"], bytes.fromhex(index["root"]), arrays, index["facts"])

    def _local_folders(self) -> list[Path]:
        found = (path for path in (self.folder / "local").iterdir() if path.name.isdecimal())
        return sorted(found, key=lambda path: int(path.name))


def _name(number: int) -> str:
    return f"{number:08d}"


def _chunk(data: NDArray[np.uint8], schema: StateSchema, index: int) -> memoryview:
    start = schema.offset(index)
    return data.data[start : start + schema.chunk_length(index)]


def _split(leaves: bytes) -> tuple[bytes, ...]:
    return tuple(leaves[start : start + 32] for start in range(0, len(leaves), 32))


def _mapped(path: Path) -> NDArray[np.uint8]:
    return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checked(chunks: Iterable[bytes | memoryview], leaves: Sequence[bytes]) -> Iterator[bytes | memoryview]:
    count = 0
    for count, chunk in enumerate(chunks, 1):
        if count > len(leaves) or merkle.leaf_hash(chunk) != leaves[count - 1]:
            raise StorageError(f"chunk {count - 1} changed while it was saved")
        yield chunk
    if count != len(leaves):
        raise StorageError(f"{count} of {len(leaves)} chunks were given")


def _hashed(parts: Iterable[memoryview], update: Callable[[memoryview], None]) -> Iterator[memoryview]:
    for part in parts:
        update(part)
        yield part
