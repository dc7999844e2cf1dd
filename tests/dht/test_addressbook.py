"""The address book survives restarts, damage and floods; the way in is looked for with patience."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dht.addressbook import ADDRESSES_PER_PEER, AddressBook, Backoff, find_a_way_in
from dht.clock import ManualClock
from dht.dial import Dial, Verdict
from dht.errors import StorageError, UnreachableError
from dht.identity import Identity, PeerId

PEERS = [Identity(bytes(31) + bytes([number])).peer_id for number in range(1, 8)]


def address(peer: PeerId, port: int = 1) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"


FOREIGN = {"peer": str(PEERS[0]), "addresses": [address(PEERS[1])], "seen": 1}


@pytest.fixture
def book(tmp_path: Path) -> AddressBook:
    return AddressBook(tmp_path / "peers.json", ManualClock())


def test_what_was_saved_is_read_back_newest_first(tmp_path: Path) -> None:
    clock = ManualClock()
    book = AddressBook(tmp_path / "peers.json", clock)
    for moment, peer in enumerate(PEERS[:3]):
        clock.advance_to(float(moment))
        book.remember(peer, [address(peer)])
    book.save()
    again = AddressBook(tmp_path / "peers.json", clock)
    assert again.entries() == book.entries()
    assert [entry.peer for entry in again.entries()] == PEERS[2::-1]
    assert again.addresses()[0] == address(PEERS[2])


def test_the_book_forgets_the_oldest_and_takes_no_foreign_address(tmp_path: Path) -> None:
    clock = ManualClock()
    book = AddressBook(tmp_path / "peers.json", clock, capacity=3)
    for moment, peer in enumerate(PEERS):
        clock.advance_to(float(moment))
        book.remember(peer, [address(PEERS[0]), "junk", *(address(peer, port) for port in range(1, 30))])
    assert [entry.peer for entry in book.entries()] == PEERS[:-4:-1]
    assert all(len(entry.addresses) <= ADDRESSES_PER_PEER for entry in book.entries())
    assert not any(str(PEERS[0]) in text for text in book.addresses())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"peers": 3}', '{"peers": [{"peer": "x"}]}', "\x00", json.dumps({"peers": [FOREIGN]})],
)
def test_a_damaged_file_is_kept_aside(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text)
    book = AddressBook(path, ManualClock())
    assert book.entries() == ()
    assert (tmp_path / "peers.json.damaged").read_text() == text
    assert "is damaged" in caplog.text
    book.remember(PEERS[0], [address(PEERS[0])])
    book.save()
    assert AddressBook(path, ManualClock()).entries() == book.entries()


def test_a_failing_disk_is_an_error_and_leaves_the_old_file(
    book: AddressBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.remember(PEERS[0], [address(PEERS[0])])
    book.save()
    before = (tmp_path / "peers.json").read_text()
    book.remember(PEERS[1], [address(PEERS[1])])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        book.save()
    assert (tmp_path / "peers.json").read_text() == before


def test_pauses_grow_with_jitter_and_end_growing() -> None:
    dice = random.Random(1)
    backoff = Backoff(first=1.0, longest=8.0)
    for attempt in range(40):
        whole = min(8.0, 2.0**attempt)
        assert whole / 2 <= backoff.pause(attempt, dice) <= whole
    assert len({backoff.pause(9, dice) for _ in range(5)}) == 5


def scripted(verdicts: dict[str, list[Verdict]]) -> Callable[[str], Awaitable[Dial]]:
    async def dial(text: str) -> Dial:
        queue = verdicts[text]
        verdict = queue.pop(0) if len(queue) > 1 else queue[0]
        return Dial(text, verdict, 3.0, PeerId.parse(text.rsplit("/", 1)[1]))

    return dial


async def test_the_way_in_is_tried_again_and_every_reason_is_said_once(book: AddressBook) -> None:
    first, second = address(PEERS[0]), address(PEERS[1])
    said: list[str] = []
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    dial = scripted({first: [Verdict.REFUSED], second: [Verdict.TIMEOUT, Verdict.TIMEOUT, Verdict.OK]})
    good = await find_a_way_in(
        dial, [first, second], book, dice=random.Random(1), sleep=sleep, say=said.append, backoff=Backoff(1.0, 60.0)
    )
    assert [result.address for result in good] == [second]
    assert len(slept) == 2
    assert 0.5 <= slept[0] <= 1.0 <= slept[1] <= 2.0
    assert said.count(f"{first}: refused") == 1
    assert said.count(f"{second}: timeout") == 1
    assert [entry.peer for entry in book.entries()] == [PEERS[1]]


async def test_the_book_helps_when_the_bootstrap_is_gone(book: AddressBook) -> None:
    book.remember(PEERS[1], [address(PEERS[1])])
    dial = scripted({address(PEERS[0]): [Verdict.REFUSED], address(PEERS[1]): [Verdict.OK]})
    good = await find_a_way_in(dial, [address(PEERS[0])], book, attempts=1)
    assert [result.peer for result in good] == [PEERS[1]]


async def test_after_the_last_attempt_every_address_is_named_with_its_reason(book: AddressBook) -> None:
    dial = scripted({address(PEERS[0]): [Verdict.REFUSED], address(PEERS[1]): [Verdict.WRONG_PEER]})
    with pytest.raises(UnreachableError) as caught:
        await find_a_way_in(dial, [address(PEERS[0]), address(PEERS[1])], book, attempts=1)
    assert f"{address(PEERS[0])}: refused" in str(caught.value)
    assert f"{address(PEERS[1])}: wrong peer id" in str(caught.value)
    with pytest.raises(UnreachableError, match="no address"):
        await find_a_way_in(dial, [], book)
