"""The codec: one encoding per value, and every other byte string refused with the right number."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging.evidence import EVIDENCE_CAP
from dht import wire
from dht.envelope import Envelope
from dht.errors import ProtocolError, Refusal
from dht.wire import U8, U16, U64, Bytes32, Count, Length, Range, decode, decode_as, digest, encode, message
from tests.strategies import load_messages, messages

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "wire.json").read_text())
REGISTERED = [row.cls for row in load_messages()]
TAG, SMALL_TAG, CAP = 0xEE, 0xEF, 4_000


@dataclass(frozen=True, slots=True)
class Point:
    x: Annotated[int, Range(-100, 100)]
    open: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One field of every kind that the codec knows."""

    count: U16
    big: U64
    key: Bytes32
    blob: Annotated[bytes, Length(0, 600)]
    name: Annotated[str, Length(1, 40)]
    flag: bool
    point: Point
    points: Annotated[tuple[Point, ...], Count(0, 20)]
    numbers: Annotated[tuple[U8, ...], Count(1, 4)]


@dataclass(frozen=True, slots=True)
class Small:
    value: U8


EVERY_CLASS = [*REGISTERED, Sample, Small]


SAMPLE = Sample(300, 2**40, bytes(32), b"\x00\xff", "Öre", True, Point(-5, False), (Point(1, True),), (7, 255))
PLAIN: dict[str, Any] = {
    "count": 300,
    "big": 2**40,
    "key": bytes(32),
    "blob": b"\x00\xff",
    "name": "Öre",
    "flag": True,
    "point": {"x": -5, "open": False},
    "points": [{"x": 1, "open": True}],
    "numbers": [7, 255],
}


@pytest.fixture(autouse=True, scope="module")
def _sample_tags() -> Iterator[None]:
    """Registered for this module only: other tests read the registry as the protocol's table of messages."""
    message(tag=TAG, cap=CAP)(Sample)
    message(tag=SMALL_TAG, cap=16)(Small)
    yield
    for cls, tag in ((Sample, TAG), (Small, SMALL_TAG)):
        del wire.REGISTRY[tag], wire._BY_CLASS[cls]


def frame(value: object, tag: int = TAG) -> bytes:
    """What somebody else's msgpack would make of a plain value."""
    return bytes([tag]) + msgpack.packb(value, use_bin_type=True)


def refusal(data: bytes | memoryview) -> Refusal | None:
    """The number with which `decode` refuses; None if it accepts. Any other exception is a failure of the test."""
    try:
        value = decode(data)
    except ProtocolError as error:
        return error.refusal
    assert encode(value) == bytes(data)
    return None


# --- values that must pass


def test_golden_vectors():
    for case in VECTORS["valid"]:
        data = bytes.fromhex(case["frame"])
        value = decode(data)
        assert type(value).__name__ == case["message"]
        shown = {
            name: plain.hex() if isinstance(plain := getattr(value, name), bytes) else plain for name in case["fields"]
        }
        assert shown == case["fields"]
        assert encode(value) == data
    for case in VECTORS["refused"]:
        assert refusal(bytes.fromhex(case["frame"])) == case["number"], case["why"]
    for case in VECTORS["digests"]:
        assert digest(case["domain"], *map(bytes.fromhex, case["parts"])).hex() == case["digest"]


def test_encodes_as_plain_msgpack_in_field_order():
    assert encode(SAMPLE) == frame(PLAIN)
    assert decode(frame(PLAIN)) == SAMPLE
    assert decode(memoryview(frame(PLAIN))) == SAMPLE


@pytest.mark.parametrize("cls", EVERY_CLASS, ids=lambda cls: cls.__name__)
def test_every_message_survives_the_round_trip(cls: type):
    @settings(max_examples=50)
    @given(messages(cls))
    def check(value: object) -> None:
        data = encode(value)
        assert decode(data) == value
        assert encode(decode(data)) == data
        assert refusal(data[:-1]) == Refusal.TRUNCATED
        assert refusal(data + b"\x00") in (Refusal.TRAILING, Refusal.OVERSIZED)

    check()


def test_every_message_declares_fields_and_a_cap_that_fits_a_frame():
    for row in wire.REGISTRY.values():
        assert 2 < row.cap <= (wire.MAX_FRAME if row.framed else EVIDENCE_CAP)
        assert 0 < row.tag < 256
        assert fields(row.cls)


def test_a_message_that_no_frame_can_hold_is_not_registered_as_one():
    with pytest.raises(ValueError, match="no frame"):
        message(tag=0xED, cap=wire.MAX_FRAME + 1)(Point)
    assert 0xED not in wire.REGISTRY


# --- frames that must not pass, each with its number


@pytest.mark.parametrize("length", [0, 1])
def test_a_frame_has_a_tag_and_a_body(length: int):
    assert refusal(bytes([TAG])[:length]) == Refusal.TRUNCATED


def test_every_proper_prefix_is_truncated():
    data = frame(PLAIN)
    assert {refusal(data[:end]) for end in range(len(data))} == {Refusal.TRUNCATED}


def test_every_trailing_byte_is_noticed():
    data = frame(PLAIN)
    assert {refusal(data + bytes([extra])) for extra in range(256)} == {Refusal.TRAILING}


def test_unknown_tags():
    for tag in set(range(256)) - set(wire.REGISTRY):
        assert refusal(frame(PLAIN, tag)) == Refusal.UNKNOWN_TAG


def test_the_cap_counts_the_whole_frame_and_comes_before_parsing():
    assert refusal(bytes([TAG]) + b"\xc1" * (CAP - 1)) == Refusal.MALFORMED
    assert refusal(bytes([TAG]) + b"\xc1" * CAP) == Refusal.OVERSIZED
    oversized = replace(SAMPLE, points=(Point(0, True),) * 20, blob=bytes(600), name="n" * 40)
    assert len(encode(oversized)) <= CAP
    assert refusal(frame({"value": 1, "other": "o" * 16}, SMALL_TAG)) == Refusal.OVERSIZED


def test_we_do_not_send_what_others_would_refuse():
    wide = message(tag=0xED, cap=16)(dataclass(frozen=True)(type("Wide", (), {"__annotations__": {"key": Bytes32}})))
    try:
        with pytest.raises(ProtocolError) as caught:
            encode(wide(bytes(32)))
    finally:
        del wire.REGISTRY[0xED], wire._BY_CLASS[wide]
    assert caught.value.refusal == Refusal.OVERSIZED


@pytest.mark.parametrize("place", ["top", "nested", "other type of key"])
def test_duplicate_keys(place: str):
    one = msgpack.packb("value") + b"\x01"
    point = b"\x83" + (msgpack.packb("x") + b"\x01") * 2 + msgpack.packb("open") + b"\xc3"
    data = {
        "top": bytes([SMALL_TAG]) + b"\x82" + one + one,
        "nested": bytes([SMALL_TAG]) + b"\x81\xa1p" + b"\x82\xa1x\x01\xa1x\x01",
        "other type of key": bytes([SMALL_TAG]) + b"\x82\xc4\x01x\x01\xc4\x01x\x02",
    }[place]
    assert refusal(data) == Refusal.DUPLICATE_KEY
    with_points = frame(PLAIN).replace(msgpack.packb(PLAIN["point"]), point, 1)
    assert refusal(with_points) == Refusal.DUPLICATE_KEY


MALFORMED: dict[str, Any] = {
    "not a map": [1],
    "an integer": 7,
    "empty map": {},
    "missing key": {name: value for name, value in PLAIN.items() if name != "flag"},
    "extra key": {**PLAIN, "extra": 1},
    "renamed key": {("Count" if name == "count" else name): value for name, value in PLAIN.items()},
    "bytes for a key": {(b"count" if name == "count" else name): value for name, value in PLAIN.items()},
    "number for a key": {(1 if name == "count" else name): value for name, value in PLAIN.items()},
    "bool for int": {**PLAIN, "count": True},
    "int for bool": {**PLAIN, "flag": 1},
    "nil for bool": {**PLAIN, "flag": None},
    "float for int": {**PLAIN, "count": 300.0},
    "not a number": {**PLAIN, "count": float("nan")},
    "text for int": {**PLAIN, "count": "300"},
    "text for bytes": {**PLAIN, "blob": "text"},
    "bytes for text": {**PLAIN, "name": b"text"},
    "list for bytes": {**PLAIN, "key": [0] * 32},
    "map for list": {**PLAIN, "numbers": {"0": 1}},
    "bytes for list": {**PLAIN, "numbers": b"\x01\x02"},
    "bool in a list of ints": {**PLAIN, "numbers": [True]},
    "list for struct": {**PLAIN, "point": [-5, False]},
    "nil for struct": {**PLAIN, "point": None},
    "missing key in struct": {**PLAIN, "point": {"x": 1}},
    "extra key in struct of list": {**PLAIN, "points": [{"x": 1, "open": True, "y": 0}]},
    "timestamp for int": {**PLAIN, "count": msgpack.Timestamp(1, 0)},
    "extension type": {**PLAIN, "count": msgpack.ExtType(5, b"\x01")},
}


@pytest.mark.parametrize("why", MALFORMED)
def test_malformed_maps(why: str):
    assert refusal(frame(MALFORMED[why])) == Refusal.MALFORMED


def test_malformed_bytes():
    assert refusal(bytes([TAG, 0xC1])) == Refusal.MALFORMED  # never used in msgpack
    not_utf8 = frame(PLAIN).replace("Öre".encode(), b"\xff\xfe\xfd\xfc", 1)
    assert refusal(not_utf8) == Refusal.MALFORMED
    for opener in (b"\x91", b"\x81\xa1x", b"\x81"):
        assert refusal(bytes([TAG]) + opener * (CAP // len(opener) - 1)) == Refusal.MALFORMED  # deeper than any message


OUT_OF_BOUNDS: dict[str, Any] = {
    "count": (-1, 2**16),
    "big": (-1,),
    "key": (b"", bytes(31), bytes(33)),
    "blob": (bytes(601),),
    "name": ("", "n" * 41, "ö" * 21),
    "point": ({"x": -101, "open": True}, {"x": 101, "open": True}),
    "points": ([{"x": 0, "open": True}] * 21, [{"x": 101, "open": True}]),
    "numbers": ([], [1] * 5, [256]),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_bounds_hold_when_reading_and_when_writing(name: str):
    as_struct = {"point": lambda value: Point(**value), "points": lambda value: tuple(Point(**item) for item in value)}
    for value in OUT_OF_BOUNDS[name]:
        assert refusal(frame({**PLAIN, name: value})) == Refusal.OUT_OF_BOUNDS
        own = as_struct.get(name, lambda value: tuple(value) if isinstance(value, list) else value)(value)
        with pytest.raises(ProtocolError) as caught:
            encode(replace(SAMPLE, **{name: own}))
        assert caught.value.refusal == Refusal.OUT_OF_BOUNDS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", True),
        ("count", 3.0),
        ("blob", bytearray(2)),
        ("blob", "text"),
        ("name", "\ud800"),
        ("flag", 1),
        ("numbers", [1]),
        ("point", (1, True)),
    ],
)
def test_wrong_types_are_refused_when_writing(name: str, value: object):
    with pytest.raises(ProtocolError) as caught:
        encode(replace(SAMPLE, **{name: value}))
    assert caught.value.refusal == Refusal.MALFORMED


def long_forms(value: Any) -> Iterator[bytes]:
    """Every msgpack encoding of a value that is longer than need be (of the value's own header only)."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        forms = ((0xCC, 1, False), (0xCD, 2, False), (0xCE, 4, False), (0xCF, 8, False))
        signed = ((0xD0, 1, True), (0xD1, 2, True), (0xD2, 4, True), (0xD3, 8, True))
        for code, width, sign in (*forms, *signed):
            if (-(1 << (8 * width - 1)) <= value < 1 << (8 * width - 1)) if sign else 0 <= value < 1 << 8 * width:
                yield bytes([code]) + value.to_bytes(width, "big", signed=sign)
        return
    packed = msgpack.packb(value, use_bin_type=True)
    codes: dict[type, tuple[tuple[int, int], ...]] = {
        bytes: ((0xC4, 1), (0xC5, 2), (0xC6, 4)),
        str: ((0xD9, 1), (0xDA, 2), (0xDB, 4)),
        list: ((0xDC, 2), (0xDD, 4)),
        dict: ((0xDE, 2), (0xDF, 4)),
    }
    size = len(value.encode() if isinstance(value, str) else value)
    header = {bytes: 2, str: 1, list: 1, dict: 1}[type(value)]
    for code, width in codes[type(value)]:
        yield bytes([code]) + size.to_bytes(width, "big") + packed[header:]


def test_every_longer_form_of_every_field_is_not_canonical():
    body = frame(PLAIN)
    tried = 0
    for name, value in [*PLAIN.items(), ("x", -5)]:
        field = msgpack.packb(name) + msgpack.packb(value, use_bin_type=True)
        assert body.count(field) == 1
        for form in long_forms(value):
            data = body.replace(field, msgpack.packb(name) + form)
            if data != body:
                tried += 1
                assert refusal(data) == Refusal.NOT_CANONICAL, (name, form)
    for form in long_forms(PLAIN):
        assert refusal(bytes([TAG]) + form) == Refusal.NOT_CANONICAL
    for form in long_forms("count"):
        assert refusal(body.replace(msgpack.packb("count"), form, 1)) == Refusal.NOT_CANONICAL
    assert tried >= 20


def test_another_order_of_keys_is_not_canonical():
    assert refusal(frame(dict(reversed(PLAIN.items())))) == Refusal.NOT_CANONICAL
    assert refusal(frame({**PLAIN, "point": {"open": False, "x": -5}})) == Refusal.NOT_CANONICAL


@pytest.mark.parametrize("code", [0xC6, 0xC9, 0xDB, 0xDD, 0xDF], ids=["bin", "ext", "str", "array", "map"])
def test_length_claims_of_4_gib_cost_no_memory(code: int):
    claim = bytes([code]) + b"\xff\xff\xff\xff"
    tracemalloc.start()
    try:
        at_top, inside = bytes([TAG]) + claim + b"\x00", bytes([TAG]) + b"\x81\xa5count" + claim + bytes(100)
        assert refusal(at_top) == refusal(inside) == Refusal.TRUNCATED
        assert refusal(bytes([TAG]) + b"\x81" + claim) in (Refusal.TRUNCATED, Refusal.MALFORMED)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_decode_as_demands_the_class():
    assert decode_as(Sample, encode(SAMPLE)) == SAMPLE
    with pytest.raises(ProtocolError) as caught:
        decode_as(Small, encode(SAMPLE))
    assert caught.value.refusal == Refusal.UNEXPECTED


# --- whatever the bytes, a numbered refusal or the one value that encodes to them


@settings(max_examples=7_000)
@given(tag=st.sampled_from([0x01, TAG, SMALL_TAG]) | st.integers(0, 255), body=st.binary(max_size=300))
def test_random_bytes(tag: int, body: bytes):
    refusal(bytes([tag]) + body)


# Whole msgpack values of any shape, keyed with our own names so that they get past the first check.
NAMES = st.sampled_from([*PLAIN, "x", "open", "value"]) | st.text(max_size=3)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40)
VALUES = st.recursive(
    SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=500)
@given(changes=st.dictionaries(NAMES, VALUES, min_size=1, max_size=2), drop=st.sets(NAMES, max_size=1))
def test_valid_msgpack_of_the_wrong_shape(changes: dict[str, Any], drop: set[str]):
    value = {name: content for name, content in {**PLAIN, **changes}.items() if name not in drop}
    refused = refusal(frame(value))
    if value.keys() != PLAIN.keys() and len(frame(value)) <= CAP:
        assert refused in (Refusal.MALFORMED, Refusal.TRUNCATED)


@st.composite
def mutated_frames(draw: st.DrawFn, cls: type) -> tuple[bytes, bytes]:
    """(a valid frame, the same with a few bytes changed, inserted, repeated or cut)."""
    original = encode(draw(messages(cls)))
    assert refusal(original) is None
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        at, until = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end"])):
            case "flip" if data:
                data[min(at, len(data) - 1)] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:until]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=6))
            case "repeat":
                data[at:at] = data[at:until]
            case _:
                del data[at:]
    return original, bytes(data)


@pytest.mark.parametrize("cls", EVERY_CLASS, ids=lambda cls: cls.__name__)
def test_mutated_frames(cls: type):
    @settings(max_examples=100)
    @given(mutated_frames(cls))
    def check(pair: tuple[bytes, bytes]) -> None:
        original, data = pair
        refused = refusal(data)
        if original.startswith(data) and data != original:
            assert refused == Refusal.TRUNCATED
        if data.startswith(original) and data != original:
            assert refused in (Refusal.TRAILING, Refusal.OVERSIZED)

    check()


# --- what a programmer gets wrong is noticed when the message is declared or first used


def test_a_tag_is_taken_once():
    with pytest.raises(ValueError, match="taken by Envelope"):
        message(tag=wire.message_type(Envelope).tag, cap=100)(Small)


@pytest.mark.parametrize("hint", [int, bytes, str, tuple[int, ...], Annotated[tuple[U8, U8], Count(2, 2)]])
def test_a_field_without_a_bound_is_no_message(hint: Any):
    with pytest.raises(TypeError, match=r"bound|tuple"):
        wire._compile(hint, packing=True)


def test_digest_separates_domains_and_parts():
    digests = {digest("a", b"xy"), digest("ax", b"y"), digest("a", b"x", b"y"), digest("a", b"", b"xy"), digest("a")}
    assert len(digests) == 5
    assert digest("a", memoryview(b"xy")) == digest("a", b"xy")
