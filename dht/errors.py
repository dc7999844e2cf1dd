"""The one error tree.

    MurmurationError                    code     exit
    ├── ConfigError                     MUR-1xx  2      a flag, variable, key or manifest is wrong
    │   └── DataError                   MUR-15x  66     training data is missing, empty or unreadable
    ├── IncompatibleRunError            MUR-2xx  65     the peers we met run another manifest or version
    ├── UnreachableError                MUR-3xx  69     nobody answers
    ├── IdentityError                   MUR-4xx  77     key file: permission, format, or in use
    │   └── LockedError                 MUR-41x  73     another process holds this data folder
    ├── StorageError                    MUR-5xx  74     disk full, unreadable, not writable
    ├── EvidenceError                   MUR-65x  1      a file that should prove a lie proves nothing
    ├── ProtocolError                   MUR-6xx  76     a peer broke the protocol (numbered `Refusal`)
    ├── RoundError                      MUR-7xx  75     a round could not finish; the update is kept
    └── ChainError                      MUR-8xx  71     the chain refused a transaction, or a node a question

Every error says what happened and what to do about it (`remedy`). Exit codes follow BSD sysexits(3)
where one fits.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class MurmurationError(Exception):
    """Root of all errors raised on purpose by this project."""

    code: ClassVar[str] = "MUR-000"
    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"[{self.code}] {self.message}{remedy}"


class ConfigError(MurmurationError):
    """A flag, environment variable, TOML key or manifest value is wrong."""

    code = "MUR-100"
    exit_code = 2


class DataError(ConfigError):
    """Training data is missing, empty, unreadable or too short."""

    code = "MUR-150"
    exit_code = 66


class IncompatibleRunError(MurmurationError):
    """Another manifest, model or protocol version than the peers we met."""

    code = "MUR-200"
    exit_code = 65


class UnreachableError(MurmurationError):
    """A peer, or every peer, could not be reached before the deadline."""

    code = "MUR-300"
    exit_code = 69


class IdentityError(MurmurationError):
    """The identity key file is unreadable, of the wrong kind, or open to others."""

    code = "MUR-400"
    exit_code = 77


class LockedError(IdentityError):
    """Another live process uses the same identity or data folder."""

    code = "MUR-410"
    exit_code = 73


class StorageError(MurmurationError):
    """The disk is full, not writable, or what it holds is damaged."""

    code = "MUR-500"
    exit_code = 74


class EvidenceError(MurmurationError):
    """A file that should prove a peer's lie proves nothing, or cannot be read."""

    code = "MUR-650"
    exit_code = 1


class RoundError(MurmurationError):
    """A round could not finish. State is unchanged and local training is kept."""

    code = "MUR-700"
    exit_code = 75


class ChainError(MurmurationError):
    """The chain refused a transaction, or a node a question. Training goes on without it."""

    code = "MUR-800"
    exit_code = 71


class Refusal(IntEnum):
    """Why a frame or message was refused. Numbers are part of the protocol: never reuse one."""

    MALFORMED = 1  # not msgpack, wrong keys, wrong types
    TRUNCATED = 2  # ends before its declared length
    OVERSIZED = 3  # over the cap of its tag
    DUPLICATE_KEY = 4  # a map key appears twice
    UNKNOWN_TAG = 5  # no message has this tag
    NOT_CANONICAL = 6  # decodes, but is not the one encoding of its value
    OUT_OF_BOUNDS = 7  # a field is outside its declared bounds
    BAD_SIGNATURE = 8  # the signature does not verify
    WRONG_RUN = 9  # belongs to another run
    WRONG_SENDER = 10  # the stream's authenticated peer is not the signer
    STALE = 11  # replayed or late: its round, attempt or sid is over
    NOT_A_MEMBER = 12  # the sender has no part in this roster or committee
    UNEXPECTED = 13  # valid, but not in this step
    EQUIVOCATION = 14  # contradicts something the same sender signed
    BAD_SHARE = 15  # a share fails its commitment, or cannot be opened
    BAD_HASH = 16  # bytes differ from the hash that binds them
    RATE_LIMITED = 17  # too many, too fast
    BAD_CERTIFICATE = 18  # too few, foreign or repeated signatures
    TRAILING = 19  # bytes after the message


class ProtocolError(MurmurationError):
    """A peer's bytes or behaviour were refused; `refusal` is the numbered reason."""

    code = "MUR-600"
    exit_code = 76

    def __init__(self, refusal: Refusal, message: str, *, remedy: str = "") -> None:
        super().__init__(f"refused ({refusal.value} {refusal.name}): {message}", remedy=remedy)
        self.refusal = refusal
