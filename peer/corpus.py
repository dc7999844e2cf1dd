"""Real text that every machine has: the Python standard library, in kinds that differ like peers' data do.

    core-code   top-level modules without their docstrings
    net-code    asyncio, http, email and other packages, without docstrings
    tables      character set tables
    prose       pydoc's topics and all docstrings

One file in ten is held out, by the hash of its path. The text differs a little from one build of Python to
another, so its hash is logged.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import logging
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from dht.errors import DataError, StorageError
from peer.documents import is_heldout

log = logging.getLogger(__name__)
KINDS = ("core-code", "net-code", "tables", "prose")
HELD_OUT_ONE_IN = 10
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "pydoc_data", "__pycache__"}


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file of the corpus; its path begins with its kind."""

    path: str
    text: str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.path.partition("/")[0]

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode())

    @property
    def is_heldout(self) -> bool:
        """Whether nobody trains on it (the rule "hash:10" of a manifest gives the same answer)."""
        return is_heldout(self.path, HELD_OUT_ONE_IN)


@dataclass(frozen=True)
class Corpus:
    """All files, ordered by kind and path."""

    files: tuple[TextFile, ...]

    @classmethod
    def build(cls) -> Corpus:
        """From the running interpreter's standard library. Raises DataError when its sources are not installed."""
        library = Path(sysconfig.get_paths()["stdlib"])
        found = [*_topics(), *(file for source in _sources(library) for file in _split(source, library))]
        if sum(file.size for file in found) < 1_000_000:
            raise DataError(
                f"{library} does not hold Python's sources", remedy="install them, or give your own text with --data"
            )
        return cls(tuple(sorted(found, key=lambda file: (KINDS.index(file.kind), file.path))))

    @cached_property
    def sha256(self) -> str:
        """Hash over all paths and texts, in hexadecimal."""
        digest = sha256()
        for file in self.files:
            for part in (file.path.encode(), file.text.encode()):
                digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

    @property
    def heldout(self) -> tuple[TextFile, ...]:
        """Files nobody trains on, of every kind."""
        return tuple(file for file in self.files if file.is_heldout)

    def shard(self, index: int, count: int) -> tuple[TextFile, ...]:
        """The training files of peer `index` of `count`: nobody else's, mostly of one kind, in equal parts by bytes.

        Raises DataError when there are more peers than files.
        """
        files = [file for file in self.files if not file.is_heldout]
        if not 0 <= index < count <= len(files):
            raise DataError(f"there is no shard {index} of {count}", remedy=f"at most {len(files)} shards")
        total, before, share = sum(file.size for file in files), 0, -1
        chosen: list[TextFile] = []
        for number, file in enumerate(files):
            # The share in which a file's middle lies, but no share skipped and none left without a file.
            wanted = min((before + file.size // 2) * count // total, share + 1, count - 1)
            share = max(wanted, count - (len(files) - number), 0)
            before += file.size
            if share == index:
                chosen.append(file)
        return tuple(chosen)

    def write(self, folder: Path, count: int) -> list[Path]:
        """Write `shard-0` ... and `heldout` below a new `folder`; returns the shards. Raises StorageError."""
        shards = [folder / f"shard-{index}" for index in range(count)]
        try:
            for index, shard in enumerate(shards):
                _write(shard, self.shard(index, count))
            _write(folder / "heldout", self.heldout)
        except OSError as error:
            raise StorageError(f"cannot write the corpus: {error}", remedy="free disk space") from error
        log.info("corpus of %d files, sha256 %s, in %s", len(self.files), self.sha256, folder)
        return shards


def _write(folder: Path, files: tuple[TextFile, ...]) -> None:
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8", newline="")


def _sources(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        # Build configuration (config-3.x-..., _sysconfigdata) names this machine, which no model should learn.
        if not _SKIPPED.intersection(parts) and not parts[0].startswith(("config-", "_sysconfigdata", "lib-dynload")):
            yield path


def _topics() -> Iterator[TextFile]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave it out
        return
    for name, text in topics.items():
        yield TextFile(f"prose/topics/{name}.txt", text)


def _split(path: Path, library: Path) -> Iterator[TextFile]:
    """A module as code without docstrings, and its docstrings as prose."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError):  # a few files are samples of bad syntax or other encodings
        return
    name = path.relative_to(library).as_posix()
    package = name.partition("/")[0]
    kind = "core-code" if package == name else "tables" if package == "encodings" else "net-code"
    lines = source.splitlines()
    prose: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text, first = ast.get_docstring(node), node.body[0] if node.body else None
            if not text or first is None:
                continue
            prose.append(text)
            if first.lineno == getattr(node, "lineno", 0):  # all on one line, which is code too
                continue
            # A body that was nothing but its docstring would leave code that does not parse.
            lines[first.lineno - 1] = " " * first.col_offset + "..." if len(node.body) == 1 else ""
            lines[first.lineno : first.end_lineno] = [""] * ((first.end_lineno or first.lineno) - first.lineno)
    code = "\n".join(line for line in lines if line.strip()) + "\n"
    yield TextFile(f"{kind}/{name}", code)
    if prose:
        yield TextFile(f"prose/docstrings/{name.removesuffix('.py')}.txt", "\n\n".join(prose) + "\n")


def main() -> None:
    """Write the corpus: `python -m peer.corpus FOLDER PEERS`."""
    parser = argparse.ArgumentParser(description="Write the standard library as training text, one folder per peer.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("peers", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for shard in Corpus.build().write(given.folder, given.peers):
        print(shard)


if __name__ == "__main__":
    main()
