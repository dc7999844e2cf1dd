"""A peer's certified records, read from its data folder or from a file, and checked like a stranger's.

    DATA_DIR/state/RUN/rounds/00000012/    index.json (names of chain segments), state.bin, leaves.bin
    DATA_DIR/state/RUN/chain/              segments: msgpack lists of frames, named by position and SHA-256

The first frame is the founding in its envelope, each other one a `Decision`: a record and its certificate. A file of
records is such a list as well: one segment, or several one after the other. Nothing is locked: the peer may be running.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgpack

from averaging.ballots import Decision
from averaging.chain import Chain, unpack
from averaging.record import Record
from dht.envelope import Envelope
from dht.errors import DataError, ProtocolError, StorageError
from dht.identity import PeerId
from dht.wire import decode_as

_ATTEMPTS = 5


@dataclass(frozen=True)
class History:
    """The chain of a run as found at `place`, every signature checked.

    `place` is None when peers sent it, and `founder_known` says that the caller named the founder.
    """

    place: Path | None
    chain: Chain
    frames: tuple[bytes, ...]
    founder_known: bool

    def refreshed(self) -> History:
        """What is there now: only what is new is checked, unless the peer went over to another branch."""
        if self.place is None:
            return self
        frames = tuple(_frames(self.place))
        if frames[: len(self.frames)] != self.frames:
            founder = self.chain.founder if self.founder_known else None
            return open_history(self.place, self.chain.run, founder)
        for frame in frames[len(self.frames) :]:
            self.chain.append(*unpack(decode_as(Decision, frame)))
        return History(self.place, self.chain, frames, self.founder_known)

    def records(self, first: int, last: int) -> list[Record]:
        """Records of these rounds. Raises DataError when the chain does not reach them."""
        if last > self.chain.head.round:
            raise DataError(
                f"{self.place or 'the chain at hand'} has records up to round {self.chain.head.round}, not {last}",
                remedy="give --records the data folder of a peer that has taken part longer, or let yours catch up",
            )
        return [self.chain.record(round_) for round_ in range(first, last + 1)]

    def model(self, round_: int) -> Path | None:
        """The state's file of a round, if it is kept here."""
        path = self.place / "rounds" / f"{round_:08d}" / "state.bin" if self.place else None
        return path if path is not None and path.is_file() else None


def open_history(place: Path, run: bytes, founder: PeerId | None = None) -> History:
    """Read and check all records of a run. Without `founder`, whoever signed the founding is taken to be it.

    Raises DataError when there are none, StorageError when they are damaged, ProtocolError when one is not certified.
    """
    folder = state_folder(place, run) if place.is_dir() else place
    frames = tuple(_frames(folder))
    envelope = decode_as(Envelope, frames[0])
    if envelope.run != run:
        raise DataError(
            f"the records at {place} are of run {envelope.run.hex()[:16]}, not {run.hex()[:16]}",
            remedy="give --records those of this run",
        )
    chain = Chain(run, founder or PeerId(envelope.sender), envelope)
    for frame in frames[1:]:
        chain.append(*unpack(decode_as(Decision, frame)))
    return History(folder, chain, frames, founder is not None)


def state_folder(place: Path, run: bytes) -> Path:
    """Where a data folder keeps the states of a run; `place` may be that folder itself. Raises DataError."""
    for folder in (place, place / "state" / run.hex()[:16]):
        if (folder / "rounds").is_dir():
            return folder
    raise DataError(
        f"{place} has no records of run {run.hex()[:16]}",
        remedy="give --records a peer's data folder (run-peer --data-dir)",
    )


def founder_of(manifest: Path) -> PeerId:
    """The founder that a run's manifest names. Raises DataError."""
    import tomllib

    try:
        return PeerId.parse(tomllib.loads(manifest.read_text())["run"]["founder"])
    except (OSError, ValueError, KeyError, TypeError, ProtocolError) as error:
        raise DataError(f"cannot read the founder from {manifest}: {error}", remedy="give --run the run.toml") from None


def _frames(place: Path) -> list[bytes]:
    if place.is_file():
        frames = _unpack_all(place.read_bytes(), place)
    else:
        frames = _newest(place)
    if not frames:
        raise DataError(f"{place} holds no records", remedy="let the peer finish a round first")
    return frames


def _newest(folder: Path) -> list[bytes]:
    """The frames of the newest whole round; the peer may replace folders while they are read."""
    problem = "it has no certified round yet"
    for _ in range(_ATTEMPTS):
        rounds = sorted((path for path in (folder / "rounds").iterdir() if path.name.isdecimal()), reverse=True)
        for path in rounds:
            try:
                names = json.loads((path / "index.json").read_bytes())["segments"]
                return [frame for name in names for frame in _segment(folder / "chain" / Path(name).name)]
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = f"round {path.name}: {error}"
    raise StorageError(f"cannot read the records in {folder}: {problem}", remedy="is it a peer's data folder?")


def _segment(path: Path) -> list[bytes]:
    data = path.read_bytes()
    if f"-{sha256(data).hexdigest()}.bin" not in path.name:
        raise ValueError(f"segment {path.name} does not have its hash")
    return _unpack_all(data, path)


def _unpack_all(data: bytes, path: Path) -> list[bytes]:
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    try:
        frames = [frame for part in unpacker for frame in part]
        if unpacker.tell() != len(data) or not all(isinstance(frame, bytes) for frame in frames):
            raise ValueError("it is cut off, or no list of frames")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise StorageError(
            f"{path} holds no records: {error}", remedy="copy it again from where it came from"
        ) from None
    return frames
