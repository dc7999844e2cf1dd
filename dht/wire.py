"""The codec: frozen dataclasses to canonical msgpack and back, with every bound checked.

A frame is one tag byte and one msgpack map. `decode` demands the exact keys, exact types, declared bounds,
a size under the tag's cap, no duplicate key, no trailing byte, and that the bytes are the only encoding of
their value, so that a hash or signature over them means one thing.

    @message(tag=0x21, cap=256)
    @dataclass(frozen=True, slots=True)
    class Ready:
        sid: Bytes32
        missing: Annotated[tuple[U16, ...], Count(0, 64)]
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, TypeVar, cast

import msgpack

from dht.errors import ProtocolError, Refusal

T = TypeVar("T")

MAX_FRAME = (1 << 20) + 4096
"""No frame is longer (bytes). A peer that announces a longer one loses the connection before memory is reserved."""


@dataclass(frozen=True, slots=True)
class Length:
    """Bound on bytes (or UTF-8 bytes of a str): `low <= len <= high`."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Range:
    """Bound on an int: `low <= value <= high`."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Count:
    """Bound on the number of items of a tuple."""

    low: int
    high: int


U8 = Annotated[int, Range(0, 2**8 - 1)]
U16 = Annotated[int, Range(0, 2**16 - 1)]
U32 = Annotated[int, Range(0, 2**32 - 1)]
U64 = Annotated[int, Range(0, 2**64 - 1)]
Bytes32 = Annotated[bytes, Length(32, 32)]
Bytes64 = Annotated[bytes, Length(64, 64)]
# A secp256k1 libp2p peer id: identity multihash of the 37-byte public key protobuf.
PEER_ID_BYTES = 39
PeerIdBytes = Annotated[bytes, Length(PEER_ID_BYTES, PEER_ID_BYTES)]

_Check = Callable[[Any, str], Any]
_Fits = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Codec:
    names: tuple[str, ...]
    pack: _Check
    unpack: _Check


@dataclass(frozen=True, slots=True)
class MessageType:
    """One row of the protocol: a tag, the class it stands for, the most bytes of its encoding; whether it may travel
    as a frame of its own, or is only kept in files and sent in pieces.
    """

    tag: int
    cap: int
    cls: type
    framed: bool


REGISTRY: dict[int, MessageType] = {}
_BY_CLASS: dict[type, MessageType] = {}
_CODECS: dict[type, _Codec] = {}


def message(*, tag: int, cap: int, framed: bool = True) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass as the message of `tag`, whose encoding has at most `cap` bytes.

    `framed` is false for what no stream accepts as one frame: it may be larger than a frame.
    """
    if framed and cap > MAX_FRAME:
        raise ValueError(f"no frame has {cap} bytes")

    def register(cls: type[T]) -> type[T]:
        if tag in REGISTRY:
            raise ValueError(f"tag {tag:#04x} is taken by {REGISTRY[tag].cls.__name__}")
        REGISTRY[tag] = _BY_CLASS[cls] = MessageType(tag, cap, cls, framed)
        return cls

    return register


def message_type(cls: type) -> MessageType:
    """The registry row of a message class."""
    return _BY_CLASS[cls]


def encode(value: object) -> bytes:
    """Frame of a message. Raises ProtocolError when a field breaks its own bound."""
    row = _BY_CLASS[type(value)]
    body = cast(bytes, msgpack.packb(_codec(row.cls).pack(value, row.cls.__name__), use_bin_type=True))
    if len(body) + 1 > row.cap:
        raise ProtocolError(Refusal.OVERSIZED, f"{row.cls.__name__}: {len(body) + 1} bytes, cap {row.cap}")
    return bytes([row.tag]) + body


def decode(frame: bytes | memoryview) -> Any:
    """Message of a frame. Raises ProtocolError with the numbered refusal; never anything else."""
    if len(frame) < 2:
        raise ProtocolError(Refusal.TRUNCATED, f"a frame of {len(frame)} bytes")
    row = REGISTRY.get(frame[0])
    if row is None:
        raise ProtocolError(Refusal.UNKNOWN_TAG, f"tag {frame[0]:#04x}")
    name = row.cls.__name__
    if len(frame) > row.cap:
        raise ProtocolError(Refusal.OVERSIZED, f"{name}: {len(frame)} bytes, cap {row.cap}")
    body = bytes(frame[1:])
    raw = _unpack(body, name)
    value = _codec(row.cls).unpack(raw, name)
    # The order of the keys was checked on the way, so this is what `encode(value)` gives, for a fifth of the time.
    if msgpack.packb(raw, use_bin_type=True) != body:
        raise ProtocolError(Refusal.NOT_CANONICAL, f"{name} is not in canonical form")
    return value


def decode_as(cls: type[T], frame: bytes | memoryview) -> T:
    """`decode`, and the message must be a `cls`; raises ProtocolError (UNEXPECTED) otherwise."""
    value = decode(frame)
    if type(value) is not cls:
        raise ProtocolError(Refusal.UNEXPECTED, f"{type(value).__name__} where {cls.__name__} was due")
    return value


def digest(domain: str, *parts: bytes | memoryview) -> bytes:
    """SHA-256 over a domain string and length-prefixed parts, so that no two lists collide."""
    hasher = _hasher(domain).copy()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return cast(bytes, hasher.digest())


@functools.cache
def _hasher(domain: str) -> Any:
    return sha256(f"murmuration/1/{domain}".encode() + b"\x00")


class _DuplicateKeyError(Exception):
    pass


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _DuplicateKeyError
    return result


def _unpack(body: bytes, name: str) -> Any:
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True, object_pairs_hook=_pairs)
    except _DuplicateKeyError:
        raise ProtocolError(Refusal.DUPLICATE_KEY, name) from None
    except msgpack.ExtraData:
        raise ProtocolError(Refusal.TRAILING, name) from None
    except Exception as error:  # msgpack raises ValueError, StackError, UnicodeDecodeError, TypeError
        # A list or map that claims more items than the frame has bytes is refused before memory is reserved.
        short = any(words in str(error) for words in ("incomplete", "exceeds max_"))
        kind = Refusal.TRUNCATED if short else Refusal.MALFORMED
        raise ProtocolError(kind, f"{name}: {type(error).__name__}") from None


def _codec(cls: type) -> _Codec:
    codec = _CODECS.get(cls)
    if codec is None:
        codec = _CODECS[cls] = _compile_struct(cls)
    return codec


def _compile_struct(cls: type) -> _Codec:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = tuple(field.name for field in dataclasses.fields(cls))
    packers = [(name, _fits(hints[name]), _compile(hints[name], packing=True)) for name in names]
    unpackers = [(name, fits, _compile(hints[name], packing=False)) for name, fits, _ in packers]
    expected = set(names)

    def pack(value: Any, where: str) -> dict[str, Any]:
        if type(value) is not cls:
            raise ProtocolError(Refusal.MALFORMED, f"{where} is {type(value).__name__}, not {cls.__name__}")
        fields = ((name, getattr(value, name), fits, check) for name, fits, check in packers)
        return {name: entry if fits(entry) else check(entry, f"{where}.{name}") for name, entry, fits, check in fields}

    def unpack(value: Any, where: str) -> Any:
        if type(value) is not dict or value.keys() != expected:
            raise ProtocolError(Refusal.MALFORMED, f"{where} does not have the keys of {cls.__name__}")
        if tuple(value) != names:
            raise ProtocolError(Refusal.NOT_CANONICAL, f"{where} has its keys in another order")
        fields = zip(value.values(), unpackers, strict=True)
        return cls(
            *[entry if fits(entry) else check(entry, f"{where}.{name}") for entry, (name, fits, check) in fields]
        )

    return _Codec(names, pack, unpack)


def _fits(hint: Any) -> _Fits:
    """Says at once whether a number or bytes are of the very type and within bounds, as nearly all are.

    Where the answer is no, `_compile`'s function looks again, to convert or to refuse it by name.
    """
    kind, *bounds = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if kind is int:
        low, high = bounds[-1].low, bounds[-1].high
        return lambda value: type(value) is int and low <= value <= high
    if kind is bytes:
        low, high = bounds[-1].low, bounds[-1].high
        return lambda value: type(value) is bytes and low <= len(value) <= high
    return lambda value: False


def _compile(hint: Any, *, packing: bool) -> _Check:
    """A function that checks one field and converts it between dataclass and msgpack form."""
    bound: Any = None
    if typing.get_origin(hint) is Annotated:
        hint, *bounds = typing.get_args(hint)
        bound = bounds[-1]
    if dataclasses.is_dataclass(hint):
        struct = hint

        def nested(value: Any, where: str) -> Any:
            codec = _codec(cast(type, struct))
            return codec.pack(value, where) if packing else codec.unpack(value, where)

        return nested
    if typing.get_origin(hint) is tuple:
        item_hint, ellipsis = typing.get_args(hint)
        if ellipsis is not Ellipsis or not isinstance(bound, Count):
            raise TypeError("a tuple field needs tuple[X, ...] and a Count bound")
        return _compile_tuple(_compile(item_hint, packing=packing), _plain(item_hint), bound, packing=packing)
    if hint is not bool and not isinstance(bound, Range if hint is int else Length):
        raise TypeError(f"field of type {hint} needs a bound")
    return _compile_scalar(hint, bound)


def _plain(hint: Any) -> Callable[[Any], bool]:
    """Says at once whether all items of a list are bytes or ints of the very type and within bounds.

    Lists of hashes are most of what travels: this way none of them costs a step of Python. Where the answer is no, each
    item is looked at, to refuse it by name, or because its type is a subclass.
    """
    kind, *bounds = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if kind not in (bytes, int):
        return lambda values: False
    bound, measure = bounds[-1], len if kind is bytes else int

    def check(values: Any) -> bool:
        if set(map(type, values)) != {kind}:
            return False
        sizes = list(map(measure, values))
        return bool(bound.low <= min(sizes) and max(sizes) <= bound.high)

    return check


def _compile_tuple(item: _Check, plain: Callable[[Any], bool], bound: Count, *, packing: bool) -> _Check:
    given = tuple if packing else list
    make = list if packing else tuple

    def check(value: Any, where: str) -> Any:
        if type(value) is not given:
            raise ProtocolError(Refusal.MALFORMED, f"{where} is not a list")
        if not bound.low <= len(value) <= bound.high:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{where} has {len(value)} items")
        return make(value if plain(value) else [item(entry, where) for entry in value])

    return check


def _compile_scalar(kind: Any, bound: Any) -> _Check:
    def check(value: Any, where: str) -> Any:
        # bool is a subclass of int and PeerId one of bytes: only the former is a confusion.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ProtocolError(Refusal.MALFORMED, f"{where} is {type(value).__name__}")
        if kind is bool:
            return value
        measure = _measure(value, where)
        if not bound.low <= measure <= bound.high:
            raise ProtocolError(Refusal.OUT_OF_BOUNDS, f"{where} = {measure}")
        return value

    return check


def _measure(value: int | str | bytes, where: str) -> int:
    """What a bound is about: the number itself, or the bytes that travel."""
    if isinstance(value, int):
        return value
    try:
        return len(value.encode() if isinstance(value, str) else value)
    except UnicodeEncodeError:
        raise ProtocolError(Refusal.MALFORMED, f"{where} is not Unicode text") from None
