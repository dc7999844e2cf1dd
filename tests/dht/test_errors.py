"""The error tree: codes and exit codes that scripts and runbooks rely on."""

from __future__ import annotations

import pytest

from dht import errors
from dht.errors import MurmurationError, ProtocolError, Refusal

TREE = {
    # class: (parent, code, exit code)
    "ConfigError": ("MurmurationError", "MUR-100", 2),
    "DataError": ("ConfigError", "MUR-150", 66),
    "IncompatibleRunError": ("MurmurationError", "MUR-200", 65),
    "UnreachableError": ("MurmurationError", "MUR-300", 69),
    "IdentityError": ("MurmurationError", "MUR-400", 77),
    "LockedError": ("IdentityError", "MUR-410", 73),
    "StorageError": ("MurmurationError", "MUR-500", 74),
    "ProtocolError": ("MurmurationError", "MUR-600", 76),
    "EvidenceError": ("MurmurationError", "MUR-650", 1),
    "RoundError": ("MurmurationError", "MUR-700", 75),
    "ChainError": ("MurmurationError", "MUR-800", 71),
}
# fmt: off
REFUSALS = [
    "MALFORMED", "TRUNCATED", "OVERSIZED", "DUPLICATE_KEY", "UNKNOWN_TAG", "NOT_CANONICAL", "OUT_OF_BOUNDS",
    "BAD_SIGNATURE", "WRONG_RUN", "WRONG_SENDER", "STALE", "NOT_A_MEMBER", "UNEXPECTED", "EQUIVOCATION", "BAD_SHARE",
    "BAD_HASH", "RATE_LIMITED", "BAD_CERTIFICATE", "TRAILING",
]
# fmt: on


@pytest.mark.parametrize("name", TREE)
def test_place_code_and_exit_code(name: str):
    parent, code, exit_code = TREE[name]
    cls = getattr(errors, name)
    assert cls.__bases__ == (getattr(errors, parent),)
    assert (cls.code, cls.exit_code) == (code, exit_code)


def test_the_tree_has_no_other_error_and_no_code_twice():
    found = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, Exception)}
    assert set(found) == {*TREE, "MurmurationError"}
    assert len({cls.code for cls in found.values()}) == len(found)
    assert len({cls.exit_code for cls in found.values()}) == len(found)


def test_text_says_what_happened_and_what_to_do():
    error = errors.StorageError("the disk is full", remedy="free 2 GB")
    assert str(error) == "[MUR-500] the disk is full (free 2 GB)"
    assert (error.message, error.remedy) == ("the disk is full", "free 2 GB")
    assert str(MurmurationError("odd")) == "[MUR-000] odd"


def test_refusal_numbers_never_change():
    assert [(refusal.name, refusal.value) for refusal in Refusal][: len(REFUSALS)] == [
        (name, number) for number, name in enumerate(REFUSALS, start=1)
    ]


def test_protocol_error_carries_its_number():
    error = ProtocolError(Refusal.BAD_HASH, "chunk 3")
    assert error.refusal is Refusal.BAD_HASH
    assert str(error) == "[MUR-600] refused (16 BAD_HASH): chunk 3"
