"""TOML tables as frozen dataclasses: strict on the way in, annotated on the way out.

A dataclass field made by `key` carries its meaning, bounds and unit, so that one definition checks a file,
names the mistake in it, and writes the commented reference file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from dht.errors import ConfigError

T = TypeVar("T")
_MISSING: Any = dataclasses.MISSING


def key(
    doc: str,
    *,
    default: Any = _MISSING,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    unit: str = "",
) -> Any:
    """A dataclass field for one TOML key. `low` and `high` bound a number (inclusive), `choices` any scalar."""
    facts = {"doc": doc, "low": low, "high": high, "choices": choices, "unit": unit}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


def section(doc: str, cls: type) -> Any:
    """A dataclass field for one TOML table; left out of a file it has all its defaults."""
    return dataclasses.field(default_factory=cls, metadata={"doc": doc})


def parse(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """The dataclass of a TOML table. Raises ConfigError naming `section.key` and what was expected."""
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    for name in table:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            remedy = f"did you mean {_join(where, close[0])}?" if close else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key {_join(where, name)}", remedy=remedy)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path = _join(where, name)
        if name in table:
            values[name] = _convert(hints[name], table[name], path, field.metadata)
        elif dataclasses.is_dataclass(hints[name]):
            values[name] = parse(typing.cast(type, hints[name]), {}, path)
        elif field.default is _MISSING and field.default_factory is _MISSING:
            raise ConfigError(f"{path} is missing", remedy=field.metadata["doc"])
    return cls(**values)


def check(instance: Any, where: str = "") -> None:
    """Apply the same rules to a frozen dataclass built in code, in place (1 becomes 1.0). Raises ConfigError."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value, path = getattr(instance, field.name), _join(where, field.name)
        if dataclasses.is_dataclass(value):
            check(value, path)
        else:
            given = list(value) if isinstance(value, tuple) else value
            # Else a manifest built in code and its own TOML text would have different hashes.
            object.__setattr__(instance, field.name, _convert(hints[field.name], given, path, field.metadata))


def plain(instance: Any) -> dict[str, Any]:
    """Nested dict of a dataclass with keys in sorted order at every level: what a canonical hash covers."""
    return typing.cast(dict[str, Any], _sorted(dataclasses.asdict(instance)))


def annotated(instance: Any, title: str) -> str:
    """TOML text of a dataclass, each key behind a comment with its meaning, unit, bounds and default."""
    lines = [f"# {line}" for line in title.splitlines()]
    for field in dataclasses.fields(instance):
        lines += ["", *_comment(field.metadata["doc"]), f"[{field.name}]"]
        lines += _table(getattr(instance, field.name), field.name)
    return "\n".join(lines) + "\n"


def _table(instance: Any, where: str) -> Iterator[str]:
    tables: list[str] = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            path = f"{where}.{field.name}"
            tables += ["", *_comment(field.metadata["doc"]), f"[{path}]", *_table(value, path)]
            continue
        yield from _comment(_describe(field))
        # An unused alternative is shown as a comment, so that the file says it exists.
        unused = "# " if value in ("", {}, ()) else ""
        yield f"{unused}{field.name} = {_literal(value)}"
    yield from tables


def _describe(field: dataclasses.Field[Any]) -> str:
    facts = field.metadata
    notes: list[str] = []
    if facts["unit"]:
        notes.append(facts["unit"])
    if facts["choices"]:
        notes.append("one of " + ", ".join(_literal(choice) for choice in facts["choices"]))
    elif facts["low"] is not None or facts["high"] is not None:
        low = "" if facts["low"] is None else f"{facts['low']} <= "
        high = "" if facts["high"] is None else f" <= {facts['high']}"
        notes.append(f"{low}value{high}")
    if field.default is not _MISSING:
        notes.append(f"default {_literal(field.default)}")
    elif field.default_factory is _MISSING:
        notes.append("required")
    return f"{facts['doc']} ({'; '.join(notes)})" if notes else str(facts["doc"])


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 110)]


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_literal(item)}" for name, item in value.items()) + " }"
    return repr(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _literal(name)


def _convert(hint: Any, value: Any, path: str, facts: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{path} must be a table, not {_kind(value)}")
        return parse(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if items[-1] is ... and isinstance(value, list):
            items = items[:1] * len(value)
        if not isinstance(value, list) or len(value) != len(items):
            raise ConfigError(f"{path} must be a list" + (f" of {len(items)} numbers" if ... not in items else ""))
        return tuple(_convert(item, entry, path, facts) for item, entry in zip(items, value, strict=True))
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path} must be a table, not {_kind(value)}")
        return _plain_table(value, path)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} must be {_NAMES[hint]}, not {_kind(value)}")
    return _bounded(value, path, facts)


def _bounded(value: Any, path: str, facts: Mapping[str, Any]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} must be a finite number")
    if facts["choices"] and value not in facts["choices"]:
        allowed = ", ".join(_literal(choice) for choice in facts["choices"])
        raise ConfigError(f"{path} = {_literal(value)} is not supported", remedy=f"use one of {allowed}")
    if facts["low"] is not None and value < facts["low"]:
        raise ConfigError(f"{path} = {value} is too small", remedy=f"at least {facts['low']}")
    if facts["high"] is not None and value > facts["high"]:
        raise ConfigError(f"{path} = {value} is too large", remedy=f"at most {facts['high']}")
    return value


def _plain_table(value: Any, path: str) -> Any:
    """A free table, refusing what has no place in a hash: dates, and numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _plain_table(item, f"{path}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_plain_table(item, path) for item in value]
    if type(value) not in _NAMES or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{path} holds {_kind(value)}, which a manifest cannot carry")
    return value


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    return _NAMES.get(type(value), type(value).__name__)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
