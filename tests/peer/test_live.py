"""The live view shows what the events said."""

from __future__ import annotations

import io

from rich.console import Console

from peer.live import ROWS, LiveReporter, rounds_table

ROUND = {
    "round": 1,
    "void": False,
    "survivors": ["a"] * 5,
    "members": ["a"] * 6,
    "heldout_loss": 3.5,
    "bytes_up": 4_100_000,
    "bytes_down": 4_200_000,
    "seconds": {"train": 2.0, "aggregate": 0.4, "wait": 0.3},
    "root": b"\x9a" * 32,
}


def console() -> Console:
    return Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)


def text(renderable: object) -> str:
    out = console()
    out.print(renderable)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_a_row_per_round_with_the_change_of_loss() -> None:
    shown = text(rounds_table([ROUND, {**ROUND, "round": 2, "heldout_loss": 3.4}, {**ROUND, "round": 3, "void": True}]))
    assert "5/6" in shown and "3.500 " in shown and "3.400 (-0.100)" in shown and "void" in shown
    assert "4.1 MB" in shown and "9a9a9a9a…" in shown


def test_the_view_holds_the_last_rounds_and_the_current_step() -> None:
    view = LiveReporter(console())
    for number in range(ROWS + 3):
        view.event("round", **{**ROUND, "round": number})
    view.event("step", round=ROWS + 3, attempt=0, step="unmask")
    shown = text(view.render())
    assert f"round {ROWS + 3}" in shown and "unmask" in shown
    assert len(view.rounds) == ROWS and view.rounds[0]["round"] == 3


def test_remarks_go_above_the_table_once() -> None:
    out = console()
    with LiveReporter(out) as view:
        view.event("refused", peer="p" * 20, reason="MALFORMED")
        view.event("refused", peer="p" * 20, reason="MALFORMED")
        view.event("waiting", reason="2 of 6 peers")
        assert "2 of 6 peers" in text(view.render())
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().count("refused: …pppppppp: MALFORMED") == 1
