"""Where text comes from: a text file, a folder, `.jsonl`, `.parquet`, or a Hugging Face dataset, read piece by piece.

Which documents are held out follows from a hash alone: of the path inside a folder, or of the text of a record where
the data is one file. So a text is held out by everyone who has it, or by nobody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
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
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_TEXT_REMEDY = "give UTF-8 text, .jsonl or .parquet"


def is_heldout(name: str, one_in: int) -> bool:
    """Whether the path or text `name` is among the one in `one_in` that are never trained on."""
    return int.from_bytes(sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") % one_in == 0


@dataclass(frozen=True, slots=True)
class Source:
    """One user's data and which part of it is wanted.

    `location`: a file, a folder, a folder of `Dataset.save_to_disk` with an optional `@SPLIT`, or the name of a dataset
    as `NAME[:CONFIGURATION][@SPLIT]`, where a split is one of `datasets`' own, such as train or train[:10%].
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
            yield from self._dataset()
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
        path = Path(self.location if os.path.exists(self.location) else self.location.rpartition("@")[0])
        files = _files(path) if os.path.isdir(path) else [path] if os.path.exists(path) else []
        stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return repr(
            (
                os.path.abspath(self.location) if files else self.location,
                self.split,
                self.heldout,
                self.text_field,
                stats,
            )
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

    def _dataset(self) -> Iterator[Piece]:
        rule, _, value = self.heldout.partition(":")
        place, split = _place_and_split(self.location)
        if rule == "split" and self.split == "heldout":
            split = value
        elif rule == "split" and value in (part.partition("[")[0] for part in split.split("+")):
            raise DataError(f"the manifest holds out the split {value!r}", remedy="train on another one, such as train")
        rows = _load_dataset(place, split)
        rows = rows.select_columns([_text_column(rows.features, self.text_field, f"the dataset {place}")])
        texts = (str(row[self.text_field] or "") for row in rows)
        yield from ((text, True) for text in texts) if rule == "split" else self._records(texts, int(value))


def _is_saved_dataset(path: Path) -> bool:
    return os.path.exists(path / "dataset_dict.json") or os.path.exists(path / "dataset_info.json")


def _place_and_split(location: str) -> tuple[str, str]:
    """What stands before and after the last @ of a dataset's name or folder; the split is train by default."""
    place, _, split = ("", "", "") if os.path.exists(location) else location.rpartition("@")
    return (place, split) if place and split else (location, "train")


def _text_column(features: Mapping[str, Any], wanted: str, where: str) -> str:
    """`wanted`, if it is a column of text. Raises DataError that names those that are."""
    texts = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    if wanted in texts:
        return wanted
    what = f"column {wanted!r} is not text" if wanted in features else f"no column {wanted!r}"
    remedy = f"name one of {', '.join(texts)} with --text-field" if texts else f"it has only {', '.join(features)}"
    raise DataError(f"{where} has {what}" if wanted not in features else f"{where}: {what}", remedy=remedy)


def _load_dataset(name: str, split: str) -> Any:
    """A `datasets.Dataset`, mapped from disk: a folder of `save_to_disk`, or a name on the hub (or in its cache)."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name} is not a file or folder here", remedy="check the path, or install murmuration[data] for datasets"
        ) from None
    try:
        if not os.path.exists(name):
            hub_name, _, configuration = name.partition(":")
            return datasets.load_dataset(hub_name, configuration or None, split=split)
        base, bracket, part = split.partition("[")
        found = datasets.load_from_disk(name)
    except Exception as error:  # datasets raises FileNotFoundError, ConnectionError, ValueError, KeyError, its own
        raise _unloadable(name, split, error) from error
    if bracket:
        remedy = f"save that part alone, or take {base} whole"
        raise DataError(f"a part of a split, [{part}, cannot be taken from the folder {name}", remedy=remedy)
    if isinstance(found, datasets.DatasetDict) and base in found:
        return found[base]
    if isinstance(found, datasets.DatasetDict):
        remedy = f"name one of its splits, {', '.join(found)}: for instance {name}@{next(iter(found), 'train')}"
        raise DataError(f"the dataset {name} has no split {base!r}", remedy=remedy)
    if base != "train":
        raise DataError(f"the dataset {name} has no split {base!r}", remedy="save a DatasetDict with that split")
    return found


def _unloadable(name: str, split: str, error: Exception) -> DataError:
    first = (str(error).splitlines() or [""])[0]
    remedy = "it is no file or folder here; check the spelling or the dataset's splits"
    if any(os.environ.get(key, "").upper() in ("1", "ON", "YES", "TRUE") for key in _OFFLINE):
        remedy += f"; {' or '.join(_OFFLINE)} is set, so only datasets that were downloaded before can be used"
    return DataError(f"cannot load {name} (split {split}): {type(error).__name__}: {first}", remedy=remedy)


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
                        f"{path} line {number} has no string {field!r}", remedy="name one that it has with --text-field"
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
                raise DataError(f"{path} has no column {field!r}", remedy=f"name one of {names} with --text-field")
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                yield from (str(text) for text in batch.column(0).to_pylist() if text)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as parquet: {error}", remedy="check that the file is whole") from None
