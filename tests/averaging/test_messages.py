"""Every message of a round: it fits under its cap at its largest, round-trips, and is refused when it is changed."""

from __future__ import annotations

import dataclasses
import typing
from contextlib import suppress
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from averaging import messages as module
from dht.envelope import BODY_CAP, seal
from dht.errors import ProtocolError
from dht.identity import PeerId
from dht.wire import REGISTRY, Count, Length, Range, decode, encode, message_type
from tests.averaging.cohort_net import identity
from tests.strategies import messages

CLASSES = [row.cls for row in REGISTRY.values() if row.cls.__module__ == module.__name__]


def extreme(hint: Any, high: bool) -> Any:
    """The longest or shortest value of a field."""
    if dataclasses.is_dataclass(hint):
        return extreme_message(hint, high)  # type: ignore[arg-type]
    hint, bound = typing.get_args(hint)[0], typing.get_args(hint)[-1]
    match bound:
        case Range(low, top):
            return top if high else low
        case Length(39, 39):
            return bytes(identity(0).peer_id)
        case Length(low, top):
            return bytes(top if high else low)
        case Count(low, top):
            return (extreme(typing.get_args(hint)[0], high),) * (top if high else low)
    raise AssertionError(hint)


def extreme_message(cls: type, high: bool) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    return cls(**{field.name: extreme(hints[field.name], high) for field in dataclasses.fields(cls)})


def test_all_messages_of_a_round_are_here():
    tags = {message_type(cls).tag for cls in CLASSES}
    assert len(CLASSES) >= 15
    assert all(0x10 <= tag <= 0x3F for tag in tags)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("high", [False, True])
def test_the_largest_and_the_smallest_fit_under_the_cap(cls, high):
    value = extreme_message(cls, high)
    frame = encode(value)
    assert decode(frame) == value
    assert len(frame) <= message_type(cls).cap <= BODY_CAP


@pytest.mark.parametrize("cls", CLASSES)
def test_the_cap_is_not_much_more_than_the_largest(cls):
    """A cap is what a stranger may make us read: no more than what the bounds need, give or take."""
    assert message_type(cls).cap <= 4 * len(encode(extreme_message(cls, True))) + 256


@pytest.mark.parametrize("cls", CLASSES)
@settings(max_examples=40)
@given(data=st.data())
def test_a_message_round_trips_and_no_changed_frame_is_another_form_of_it(cls, data):
    value = data.draw(messages(cls))
    frame = encode(value)
    assert decode(frame) == value
    at = data.draw(st.integers(0, len(frame) - 1))
    changed = bytearray(frame)
    changed[at] ^= data.draw(st.integers(1, 255))
    cut = frame[: data.draw(st.integers(0, len(frame) - 1))]
    for other in (bytes(changed), cut, frame + b"\x00"):
        with suppress(ProtocolError):
            assert decode(other) != value


def test_bounds_belong_to_every_field():
    for cls in CLASSES:
        for hint in typing.get_type_hints(cls, include_extras=True).values():
            assert typing.get_origin(hint) is Annotated, cls


def test_a_roster_of_the_largest_size_fits_its_seating():
    roster = seal(identity(0), bytes(32), 2**64 - 1, extreme_message(module.Roster, True))
    assert encode(module.Seating(encode(roster), (bytes(4352),) * 64))


def test_a_record_of_the_largest_size_can_be_attested():
    attest = module.Attest(1, bytes(32), bytes(module.ATTESTED_CAP))
    assert decode(encode(attest)) == attest
    assert PeerId(identity(0).peer_id)
