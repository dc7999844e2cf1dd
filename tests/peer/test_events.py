"""Events as JSON, as lines, and to several readers at once."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from dht.identity import Identity
from peer.events import JsonReporter, LineReporter, Tee, describe, from_threads, plain

ROUND = {
    "round": 42,
    "void": False,
    "survivors": ["a", "b", "c", "d", "e"],
    "members": ["a", "b", "c", "d", "e", "f"],
    "heldout_loss": 3.412,
    "train_loss": 3.3,
    "tokens": 10240,
    "bytes_up": 4_100_000,
    "bytes_down": 4_200_000,
    "seconds": {"train": 2.04, "aggregate": 0.4, "wait": 0.3},
    "root": bytes.fromhex("9a3f01c2" + "00" * 28),
    "state_bytes": 11_000_000,
}


def lines(*events: tuple[str, dict[str, object]]) -> list[str]:
    stream = io.StringIO()
    reporter = LineReporter(stream)
    for name, fields in events:
        reporter.event(name, **fields)
    return stream.getvalue().splitlines()


def test_json_is_one_object_per_line_with_event_and_time() -> None:
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    peer = Identity(b"\x01" * 32).peer_id
    reporter.event("round", **ROUND)
    reporter.event("refused", peer=peer, reason="MALFORMED")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["event"] == "round" and first["time"] > 0
    assert first["root"] == "9a3f01c2" + "00" * 28
    assert first["seconds"]["train"] == 2.04
    assert second["peer"] == str(peer)


def test_training_is_told_in_words() -> None:
    measured = {"sequences": 8, "sequence_length": 128, "micro": 4, "accumulation": 2, "tokens_per_second": 5120.3}
    assert lines(
        ("batch", {**measured, "steps": 6, "local_steps": 10}),
        ("batch", {**measured, "steps": 10, "local_steps": 10}),
        ("out_of_memory", {"before": 4, "micro": 2}),
        ("skipped", {"loss": float("nan"), "norm": float("inf"), "in_a_row": 3}),
        ("sat_out", {"round": 7, "reason": "loss not finite"}),
        ("warning", {"text": "little text"}),
    ) == [
        "  a step is 8 x 128 tokens, 4 sequences at a time · 5120 tokens/s · "
        "about 6 of 10 steps fit in the train deadline",
        "  a step is 8 x 128 tokens, 4 sequences at a time · 5120 tokens/s · all 10 steps fit in the train deadline",
        "out of memory with 4 sequences at a time: going on with 2",
        "skipped a local step: loss nan, gradient norm inf",
        "round 7 · sitting out, starting over from the certified model: loss not finite",
        "warning: little text",
    ]


async def test_threads_tell_through_the_loop() -> None:
    told: list[tuple[str, dict[str, object], int]] = []

    class Listener:
        def event(self, name: str, /, **fields: object) -> None:
            told.append((name, fields, threading.get_ident()))

    tell = from_threads(Listener())
    await asyncio.to_thread(lambda: [tell("skipped", in_a_row=number) for number in (1, 2)])
    await asyncio.sleep(0)
    assert told == [("skipped", {"in_a_row": number}, threading.get_ident()) for number in (1, 2)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (Path("a/b"), "a/b"),
        (b"\x01\xff", "01ff"),
        ((1, {"k": {b"\x02"}}), [1, {"k": ["02"]}]),
        (True, True),
        (None, None),
    ],
)
def test_values_become_plain_json(value: object, expected: object) -> None:
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_a_round_is_one_line_with_the_change_of_loss() -> None:
    first, second = lines(("round", ROUND), ("round", {**ROUND, "round": 43, "heldout_loss": 3.392}))
    assert first == (
        "round 42 · 5/6 survivors · loss 3.412 · train 2.0 s, aggregate 0.4 s, wait 0.3 s · "
        "up 4.1 MB down 4.2 MB · root 9a3f01c2…"
    )
    assert "loss 3.392 (-0.020)" in second


def test_a_void_round_says_that_nothing_changed_and_keeps_the_last_loss() -> None:
    void = {"round": 43, "void": True, "survivors": [], "members": ["a"] * 6}
    _, line, after = lines(("round", ROUND), ("round", void), ("round", {**ROUND, "round": 44, "heldout_loss": 3.4}))
    assert line.startswith("round 43 · void · 0/6 survivors")
    assert "(-0.012)" in after


def test_the_first_lines_say_who_where_and_what_next() -> None:
    address = "/ip4/192.0.2.1/tcp/1/p2p/16Uiu2"
    verdict = {"address": address, "verdict": "refused"}
    shown = "\n".join(
        lines(
            (
                "started",
                {"peer": "16Uiu2", "run": "9a" * 32, "addresses": ["/ip4/127.0.0.1/tcp/1", address], "round": 0},
            ),
            ("bootstrap", verdict),
        )
    )
    assert shown.splitlines() == [
        "peer 16Uiu2 · run 9a9a9a9a… · round 0",
        "  listening on /ip4/127.0.0.1/tcp/1",
        f"  listening on {address}",
        f"  others join with: run-peer --run run.toml --bootstrap {address} --data TEXT",
        f"  bootstrap {address}: refused",
    ]


def test_steps_are_silent_and_a_repeated_line_is_said_once() -> None:
    waiting = ("waiting", {"reason": "3 of 6 peers"})
    assert lines(("step", {"round": 1, "attempt": 0, "step": "train"}), waiting, waiting) == ["waiting: 3 of 6 peers"]


@pytest.mark.parametrize(
    "name",
    [
        "started",
        "waiting",
        "joined",
        "round",
        "caught_up",
        "refused",
        "peer_unreachable",
        "checkpoint_rolled_back",
        "stopped",
        "error",
        "?",
    ],
)
def test_missing_fields_never_raise(name: str) -> None:
    describe(name, {})


def test_a_reader_that_has_gone_is_no_error() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    JsonReporter(Gone()).event("stopped", round=1)
    closed = io.StringIO()
    closed.close()
    LineReporter(closed).event("waiting", reason="x")


def test_tee_hands_to_all_and_a_field_may_be_called_name() -> None:
    one, two = io.StringIO(), io.StringIO()
    Tee(JsonReporter(one), JsonReporter(two)).event("started", name="x")
    assert json.loads(one.getvalue())["name"] == json.loads(two.getvalue())["name"] == "x"
