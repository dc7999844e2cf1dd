"""Slashing on messages that averaging's own code seals: what it calls a contradiction costs stake, and no more."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from averaging.evidence import contradiction
from averaging.messages import Ready, Roster, Seat, SumHashes, Vote
from benchmarks.contracts import RUN, UNIT, Key, Receipt, RevertedError, Settings
from dht.envelope import Envelope, seal, signed_digest
from dht.errors import ProtocolError
from dht.identity import Identity
from dht.wire import encode
from tests.ledger.evm import Pyrevm
from tests.strategies import messages

LIAR, OTHER = Key("liar"), Key("another peer")
SID, HEAD, ORDER = b"s" * 32, b"h" * 32, 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
VOTE = Vote(SID, 0b1111, 0b11, b"m" * 32)
SEATS = tuple(Seat(Identity(Key(f"seat {i}").secret).peer_id, bytes([i]) * 32, 60 * i) for i in range(20))
ROSTER = Roster(300, 2, HEAD, SEATS)
SUMS = SumHashes(SID, tuple(range(120, 140)), tuple(bytes([i]) * 32 for i in range(20)))
PAIRS = {
    "two votes": (VOTE, replace(VOTE, survivors=2**64 - 1)),
    "two rosters": (ROSTER, replace(ROSTER, seats=SEATS[::-1])),
    "two rosters, one of few seats": (ROSTER, replace(ROSTER, seats=SEATS[:1])),
    "two sums of one chunk": (SUMS, replace(SUMS, hashes=(*SUMS.hashes[:-1], bytes(32)))),
    "two sums that share one chunk": (SUMS, SumHashes(SID, (70_000, 139, 3), (SID, SID, SID))),
}
HARMLESS = {
    "one vote": (VOTE, VOTE),
    "votes of two sids": (VOTE, replace(VOTE, sid=HEAD, survivors=1)),
    "rosters of two attempts": (ROSTER, replace(ROSTER, attempt=3)),
    "rosters of two heads": (ROSTER, replace(ROSTER, head=SID)),
    "rosters of two rounds": (ROSTER, replace(ROSTER, round=301)),
    "one roster": (ROSTER, ROSTER),
    "sums of two sids": (SUMS, replace(SUMS, sid=HEAD, hashes=SUMS.hashes[::-1])),
    "sums of other chunks": (SUMS, SumHashes(SID, (1, 2), (SID, HEAD))),
    "equal sums beside others": (SUMS, SumHashes(SID, (1, 120), (SID, SUMS.hashes[0]))),
    "no sums": (SUMS, SumHashes(SID, (), ())),
    "two kinds": (VOTE, SUMS),
}


@pytest.fixture(scope="module")
def founded():
    evm = Pyrevm()
    evm.found([Key(f"attestor {i}") for i in range(4)], Settings())
    evm.send("Token", "transfer", evm.accounts[1], 100 * UNIT)
    evm.send("Token", "approve", evm.at["PeerRegistry"], 100 * UNIT, sender=1)
    evm.send("PeerRegistry", "enrol", *evm.binding(LIAR, 1), 100 * UNIT, bytes(32), sender=1)
    return evm


@pytest.fixture
def evm(founded):
    with founded.undone():
        yield founded


def sealed(body: object, round_: int = 300, key: Key = LIAR, run: bytes = RUN) -> Envelope:
    return seal(Identity(key.secret), run, round_, body)


def forged(body: bytes, round_: int = 300) -> Envelope:
    """An envelope around any bytes, signed."""
    liar = Identity(LIAR.secret)
    return Envelope(RUN, round_, liar.peer_id, body, liar.sign(signed_digest(RUN, round_, liar.peer_id, body)))


def arguments(one: Envelope, other: Envelope, key: Key = LIAR) -> tuple[Any, ...]:
    words = [half for envelope in (one, other) for half in (envelope.signature[:32], envelope.signature[32:])]
    return key.x, key.y, one.round, one.body, other.body, words


def report(evm: Pyrevm, one: Envelope, other: Envelope, key: Key = LIAR) -> Receipt:
    return evm.send("Slashing", "reportMessages", *arguments(one, other, key), sender=2)


def stake(evm: Pyrevm) -> int:
    return evm.call("PeerRegistry", "peer", evm.accounts[1])[1]


@pytest.mark.parametrize("name", PAIRS)
def test_what_averaging_calls_a_contradiction_costs_half_the_stake(evm, name):
    one, other = map(sealed, PAIRS[name])
    assert contradiction(one, other) is not None
    events = {name: fields for _, name, fields in report(evm, one, other).events}
    assert stake(evm) == 50 * UNIT and events["Slashed"]["amount"] == 50 * UNIT
    assert evm.call("Token", "balanceOf", evm.accounts[2]) == 5 * UNIT
    proven = events["EquivocationProven"]
    assert (proven["wallet"], proven["key"], proven["kind"]) == (evm.accounts[1], LIAR.address, one.body[0])
    assert evm.call("Slashing", "punished", proven["evidence"]) is True


@pytest.mark.parametrize("name", PAIRS)
def test_one_offence_costs_once_in_either_order(evm, name):
    one, other = map(sealed, PAIRS[name])
    report(evm, one, other)
    for pair in ((one, other), (other, one)):
        with pytest.raises(RevertedError, match="AlreadyPunished"):
            report(evm, *pair)
    assert stake(evm) == 50 * UNIT


def test_a_third_message_at_one_place_is_no_second_offence(evm):
    one, other, third = (sealed(replace(VOTE, survivors=survivors)) for survivors in (1, 2, 3))
    report(evm, one, other)
    with pytest.raises(RevertedError, match="AlreadyPunished"):
        report(evm, other, third)
    report(evm, *(sealed(replace(VOTE, sid=HEAD, survivors=survivors)) for survivors in (1, 2)))
    assert stake(evm) == 25 * UNIT


@pytest.mark.parametrize("name", HARMLESS)
def test_what_may_both_be_said_costs_nothing(evm, name):
    one, other = map(sealed, HARMLESS[name])
    assert contradiction(one, other) is None
    with pytest.raises(RevertedError, match="NoContradiction"):
        report(evm, one, other)
    assert stake(evm) == 100 * UNIT


def test_messages_of_two_rounds_do_not_meet(evm):
    one, other = PAIRS["two votes"]
    for first, second, index in ((sealed(one, 1), sealed(other, 2), 1), (sealed(one, 2), sealed(other, 1), 1)):
        assert contradiction(first, second) is None
        with pytest.raises(RevertedError, match="BadSignature") as refused:
            report(evm, first, second)
        assert refused.value.values == (index,)


def test_both_are_of_this_run_and_of_the_one_who_is_accused(evm):
    one, other = PAIRS["two votes"]
    for wrong in (sealed(other, run=HEAD), sealed(other, key=OTHER)):
        with pytest.raises(RevertedError, match="BadSignature"):
            report(evm, sealed(one), wrong)
        with pytest.raises(RevertedError, match="BadSignature"):
            report(evm, wrong, sealed(one))
    theirs = [sealed(body, key=OTHER) for body in (one, other)]
    with pytest.raises(RevertedError, match="BadSignature"):
        report(evm, *theirs)  # a true pair, put on somebody else's account
    with pytest.raises(RevertedError, match="NobodyLiable"):
        report(evm, *theirs, key=OTHER)


def test_the_twin_of_a_signature_is_refused(evm):
    one, other = map(sealed, PAIRS["two votes"])
    high = (ORDER - int.from_bytes(one.signature[32:], "big")).to_bytes(32, "big")
    with pytest.raises(RevertedError, match="HighS"):
        report(evm, replace(one, signature=one.signature[:32] + high), other)


def test_signatures_of_nobody_accuse_nobody(evm):
    one, other = map(sealed, PAIRS["two votes"])
    with pytest.raises(RevertedError, match="BadSignature"):
        report(evm, replace(one, signature=bytes(64)), replace(other, signature=bytes(64)))
    with pytest.raises(RevertedError, match="BadSignature"):
        evm.send("Slashing", "reportMessages", bytes(32), bytes(32), 300, one.body, other.body, [bytes(32)] * 4)


def test_other_kinds_of_messages_are_not_judged_here(evm):
    one, other = (sealed(Ready(SID, (SID, SID, last))) for last in (SID, HEAD))
    assert contradiction(one, other) is not None
    with pytest.raises(RevertedError, match="UnknownKind"):
        report(evm, one, other)


def vote(survivors: bytes, tail: bytes = b"") -> bytes:
    """A vote's frame around the bytes of one number."""
    head, rest = encode(replace(VOTE, survivors=1)).split(b"\xa9survivors\x01")
    return head + b"\xa9survivors" + survivors + rest + tail


def uneven(chunks: int, hashes: int) -> bytes:
    """A list of sums whose two halves have other lengths."""
    return encode(SumHashes(SID, tuple(range(120, 120 + chunks)), (bytes(32),) * hashes))


MALFORMED = {
    "one byte where none is needed": vote(b"\xcc\x7f"),
    "two bytes where one will do": vote(b"\xcd\x00\xff"),
    "four bytes where two will do": vote(b"\xce\x00\x00\xff\xff"),
    "eight bytes where four will do": vote(b"\xcf" + bytes(4) + b"\xff" * 4),
    "a negative number": vote(b"\xff"),
    "a number that ends too early": vote(b"\xcf\xff")[:60],
    "no number": vote(b"\xc0"),
    "something behind the end": vote(b"\x02", tail=b"\xc0"),
    "a frame without a message": b"\x19",
    "fewer hashes than chunks": uneven(3, 2),
    "fewer chunks than hashes": uneven(2, 3),
    "a list in a longer form": encode(SumHashes(SID, (120,), (SID,))).replace(b"chunks\x91", b"chunks\xdc\x00\x01"),
    "a roster without seats": encode(replace(ROSTER, seats=SEATS[:1])).split(b"seats")[0] + b"seats\x90",
    "an attempt above its bound": encode(ROSTER).replace(b"attempt\x02", b"attempt\xcf" + b"\x01" * 8),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_no_honest_peer_would_sign_is_malformed_and_costs_nothing(evm, name):
    broken = forged(MALFORMED[name])
    whole = sealed({0x19: VOTE, 0x12: ROSTER, 0x1B: SUMS}[broken.body[0]])
    assert not judged(whole, broken)
    for pair in ((whole, broken), (broken, whole)):
        with pytest.raises(RevertedError, match="Malformed"):
            report(evm, *pair)
    assert stake(evm) == 100 * UNIT


@pytest.mark.parametrize("number", [0, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**32 - 1, 2**32, 2**64 - 1])
def test_numbers_of_every_width_are_read(evm, number):
    one, other = sealed(replace(VOTE, survivors=number)), sealed(replace(VOTE, survivors=number, reducers=9))
    report(evm, one, other)
    assert stake(evm) == 50 * UNIT


def accepted(evm: Pyrevm, one: Envelope, other: Envelope) -> bool:
    """Whether the pair would be punished; whoever reports it may name either first."""
    answers = set()
    for pair in ((one, other), (other, one)):
        with evm.undone():
            try:
                report(evm, *pair)
                answers.add("punished")
            except RevertedError as refused:
                answers.add(refused.name)
    assert answers <= {"punished", "NoContradiction", "Malformed", "UnknownKind"}
    assert len(answers) == 1 or any(map(repeats, (one, other)))
    return "punished" in answers


def judged(one: Envelope, other: Envelope) -> bool:
    """Whether averaging finds a contradiction, of the kinds and forms that the contract judges."""
    with suppress(ProtocolError):
        bodies = one.message(), other.message()
        if all(isinstance(body, Vote | Roster | SumHashes) for body in bodies):
            lists = [body for body in bodies if isinstance(body, SumHashes)]
            even = all(len(body.chunks) == len(body.hashes) for body in lists)  # else averaging refuses it on arrival
            return even and contradiction(one, other) is not None
    return False


def repeats(envelope: Envelope) -> bool:
    """Whether a message names a chunk twice, of which averaging hears the last only and the contract any."""
    with suppress(ProtocolError):
        body = envelope.message()
        return isinstance(body, SumHashes) and len(set(body.chunks)) < len(body.chunks)
    return False


DAMAGE = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "append"]), st.integers(0, 4000), st.integers(0, 255)),
    min_size=1,
    max_size=2,
)


def damaged(body: bytes, damage: list[tuple[str, int, int]]) -> bytes:
    for how, where, value in damage:
        where %= len(body)
        if how == "set":
            body = body[:where] + bytes([value]) + body[where + 1 :]
        elif how == "cut" and where > 1:
            body = body[:where]
        elif how == "insert":
            body = body[:where] + bytes([value]) + body[where:]
        elif how == "append":
            body += bytes([value])
    return body


@given(name=st.sampled_from(sorted(PAIRS)), damage=DAMAGE)
@settings(max_examples=300, deadline=None)
def test_damaged_messages_are_judged_as_averaging_judges_them(founded, name, damage):
    one, other = PAIRS[name]
    whole, broken = sealed(one), forged(damaged(encode(other), damage))
    expected = judged(whole, broken)
    event(f"{name}: {'punished' if expected else 'refused'}")
    assert accepted(founded, whole, broken) is expected or repeats(broken)


@given(data=st.data(), kind=st.sampled_from([Vote, Roster, SumHashes]))
@settings(max_examples=100, deadline=None)
def test_any_two_messages_are_judged_as_averaging_judges_them(founded, data, kind):
    one, other = data.draw(messages(kind)), data.draw(messages(kind))
    # At one place more often than chance would have it.
    if isinstance(one, Roster):
        other = replace(other, round=one.round, attempt=one.attempt, head=one.head)
    elif isinstance(one, Vote):
        other = replace(other, sid=one.sid)
    else:
        chunks = [data.draw(st.lists(st.integers(120, 136), unique=True, max_size=5)) for _ in range(2)]
        one, other = (SumHashes(SID, tuple(listed), (SID, HEAD, SID, HEAD, SID)[: len(listed)]) for listed in chunks)
    first, second = sealed(one), sealed(other)
    expected = judged(first, second)
    event(f"{kind.__name__}: {'punished' if expected else 'refused'}")
    assert accepted(founded, first, second) is expected
