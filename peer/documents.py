"""Where text comes from: a text file, a folder, `.jsonl`, `.parquet`, or a Hugging Face dataset, read piece by piece.

Which documents are held out follows from a hash alone: of the path inside a folder, or of the text of a record where
the data is one file. So a text is held out by everyone who has it, or by nobody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dht.errors import DataError

Split: TypeAlias = Literal["train", "heldout"]
Piece: TypeAlias = tuple[str, bool]
"""Some text, and whether a document ends with it."""

_RECORD_CHARACTERS = 4096  # a lone text file is cut into records of about this many characters
_READ_CHARACTERS = 1 << 20
_TEXT_REMEDY = "give UTF-8 text, .jsonl or .parquet"


def is_heldout(name: str, one_in: int) -> bool:
    """Whether the path or text `name` is among the one in `one_in` that are never trained on."""
    return int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") % one_in == 0


@dataclass(frozen=True, slots=True)
class Source:
    """One user's data and which part of it is wanted.

    `heldout` is the manifest's rule, "hash:K" or "split:NAME"; the latter needs a Hugging Face dataset.
    """

    location: str
    split: Split
    heldout: str
    text_field: str = "text"

    def pieces(self) -> Iterator[Piece]:
        """The text, in a fixed order. Raises DataError that names the file and what to do."""
        path = Path(self.location)
        if _is_saved_dataset(path) or not os.path.exists(path):  # Path.exists raises for a name that is too long
            yield from self._dataset(path)
            return
        rule, _, value = self.heldout.partition(":")
        if rule != "hash":
            raise DataError(
                f"{path} has no split {value!r}, which the manifest holds out", remedy="use a Hugging Face dataset"
            )
        if path.is_dir():
            yield from self._folder(path, int(value))
        else:
            yield from self._records(_records(path, self.text_field), int(value))

    def fingerprint(self) -> str:
        """Text that changes when the data may have changed: names, sizes and modification times."""
        path = Path(self.location)
        files = _files(path) if os.path.isdir(path) else [path] if os.path.exists(path) else []
        stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return repr(
            (str(path.absolute()) if files else self.location, self.split, self.heldout, self.text_field, stats)
        )

    def _wants(self, name: str, one_in: int) -> bool:
        return is_heldout(name, one_in) == (self.split == "heldout")

    def _folder(self, folder: Path, one_in: int) -> Iterator[Piece]:
        for file in _files(folder):
            if not self._wants(file.relative_to(folder).as_posix(), one_in):
                continue
            if file.suffix in (".jsonl", ".parquet"):
                yield from ((text, True) for text in _records(file, self.text_field))
                continue
            for piece in _text(file, _READ_CHARACTERS):
                yield piece, False
            yield "", True

    def _records(self, records: Iterator[str], one_in: int) -> Iterator[Piece]:
        return ((text, True) for text in records if self._wants(text, one_in))

    def _dataset(self, path: Path) -> Iterator[Piece]:
        rule, _, value = self.heldout.partition(":")
        split = value if rule == "split" and self.split == "heldout" else "train"
        rows = _load_dataset(path, self.location, split)
        if self.text_field not in rows.features:
            raise DataError(
                f"the dataset {self.location} has no column {self.text_field!r}",
                remedy=f"name one of {', '.join(rows.features)} as the text field",
            )
        texts = (str(row[self.text_field] or "") for row in rows)
        yield from ((text, True) for text in texts) if rule == "split" else self._records(texts, int(value))


def _is_saved_dataset(path: Path) -> bool:
    return os.path.exists(path / "dataset_dict.json") or os.path.exists(path / "dataset_info.json")


def _load_dataset(path: Path, name: str, split: str) -> Any:
    """A `datasets.Dataset`, from disk (`save_to_disk`) or by name (`org/name` or `org/name:configuration`)."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} is not a file or folder here", remedy="check the path, or install murmuration[data] for datasets"
        ) from None
    try:
        if not os.path.exists(path):
            hub_name, _, configuration = name.partition(":")
            return datasets.load_dataset(hub_name, configuration or None, split=split)
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            return found[split]
    except Exception as error:  # datasets raises FileNotFoundError, ConnectionError, ValueError, KeyError, its own
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"cannot load {name} (split {split}): {type(error).__name__}: {first}",
            remedy="it is no file or folder here; check the spelling or the dataset's splits",
        ) from error
    if split != "train":
        raise DataError(f"the dataset {name} has no split {split!r}", remedy="save a DatasetDict with that split")
    return found


def _files(folder: Path) -> list[Path]:
    """Files below a folder in the order of their paths, without hidden ones and caches."""
    found = (path for path in folder.rglob("*") if path.is_file())
    parts = ((path.relative_to(folder).parts, path) for path in found)
    return [path for names, path in sorted(parts) if not any(n.startswith(".") or n == "__pycache__" for n in names)]


def _records(path: Path, field: str) -> Iterator[str]:
    if path.suffix == ".jsonl":
        return _jsonl(path, field)
    if path.suffix == ".parquet":
        return _parquet(path, field)
    return _text(path, _RECORD_CHARACTERS)


def _text(path: Path, characters: int) -> Iterator[str]:
    """A text file in pieces of about `characters`, cut after a line where lines are not much longer."""
    try:
        with path.open(encoding="utf-8") as file:
            while piece := file.read(characters):
                piece += file.readline(characters) if not piece.endswith("\n") else ""
                if "\0" in piece:
                    raise DataError(f"{path} is binary, not text", remedy=f"take it out of the data, or {_TEXT_REMEDY}")
                yield piece
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start} of a block",
            remedy=f"take it out of the data, convert it, or {_TEXT_REMEDY}",
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", remedy="check that the file can be read") from None


def _jsonl(path: Path, field: str) -> Iterator[str]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict) or not isinstance(value.get(field), str):
                    raise DataError(
                        f"{path} line {number} has no string {field!r}", remedy="set the text field to one it has"
                    )
                yield value[field]
    except ValueError as error:  # both JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{path} line {number} is not JSON: {error}", remedy="one JSON object per line") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", remedy="check that the file can be read") from None


def _parquet(path: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow", remedy="install murmuration[data]") from None
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path} has no column {field!r}", remedy=f"set the text field to one of {names}")
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                yield from (str(text) for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as parquet: {error}", remedy="check that the file is whole") from None
