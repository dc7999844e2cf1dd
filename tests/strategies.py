"""Hypothesis strategies for protocol messages, built from the annotations that the codec itself reads."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from hypothesis import strategies as st

from dht.wire import REGISTRY, Count, Length, MessageType, Range

ROOT = Path(__file__).parent.parent
PACKAGES = ("dht", "averaging", "ledger", "peer", "bootstrap")
# Bounds go up to a mebibyte; what breaks does so at the low end and at the exact high end of short fields.
MOST_BYTES, MOST_ITEMS = 80, 5


def load_messages() -> list[MessageType]:
    """Import every module that declares a message; returns the registry in tag order."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "\n@message(" in path.read_text():
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return [REGISTRY[tag] for tag in sorted(REGISTRY)]


@lru_cache
def messages(cls: type) -> st.SearchStrategy[Any]:
    """Values of a message class (or a struct inside one), every field within its declared bounds."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{field.name: field_values(hints[field.name]) for field in dataclasses.fields(cls)})


def field_values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of one field's annotation."""
    bound: Any = None
    if typing.get_origin(hint) is Annotated:
        hint, *bounds = typing.get_args(hint)
        bound = bounds[-1]
    match hint, bound:
        case _ if hint is bool:
            return st.booleans()
        case _, Range(low, high):
            return st.integers(low, high) | st.sampled_from((low, high))
        case _, Length(low, high) if hint is str:
            texts = st.text(st.characters(codec="utf-8"), min_size=low, max_size=max(low, min(high, MOST_BYTES) // 4))
            return texts.filter(lambda text: len(text.encode()) <= high)
        case _, Length(low, high):
            return st.binary(min_size=low, max_size=max(low, min(high, MOST_BYTES)))
        case _, Count(low, high):
            items = field_values(typing.get_args(hint)[0])
            return st.lists(items, min_size=low, max_size=max(low, min(high, MOST_ITEMS))).map(tuple)
        case _ if dataclasses.is_dataclass(hint):
            return messages(typing.cast(type, hint))
    raise TypeError(f"no strategy for {hint} with {bound}")
