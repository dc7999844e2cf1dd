"""Commands end with the right code and one line; logs come in two forms."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
from collections.abc import Iterator

import pytest

from dht import logs
from dht.errors import ConfigError, LockedError
from dht.exits import EXIT_INTERRUPTED, run, until_stopped


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def ends(command: object, *, as_json: bool = False) -> int:
    with pytest.raises(SystemExit) as caught:
        run(command, as_json=as_json)  # type: ignore[arg-type]
    return int(caught.value.code or 0)


def test_the_code_of_a_command_is_its_own() -> None:
    assert ends(lambda: None) == 0
    assert ends(lambda: 5) == 5


def test_an_error_is_one_line_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise LockedError("it is taken", remedy="take another")

    assert ends(fail) == 73
    assert capsys.readouterr().err == "error: [MUR-410] it is taken (take another)\n"
    assert ends(fail, as_json=True) == 73
    assert json.loads(capsys.readouterr().err) == {
        "error": "it is taken",
        "code": "MUR-410",
        "remedy": "take another",
        "exit": 73,
    }


def test_a_full_disk_is_a_storage_error_and_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "model.bin")

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert ends(full) == 74
    assert "model.bin: No space left on device" in capsys.readouterr().err
    assert ends(interrupted) == EXIT_INTERRUPTED


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_asks_the_work_to_stop(number: signal.Signals) -> None:
    async def work(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 10)

    assert await until_stopped(work) == 0


async def test_errors_of_the_work_come_out() -> None:
    async def work(stop: asyncio.Event) -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        await until_stopped(work)


def test_logs_for_people_and_for_machines(root_logger: logging.Logger) -> None:
    human, machine = io.StringIO(), io.StringIO()
    logs.configure(stream=human, quiet=True)
    logging.getLogger("dht.x").info("not shown")
    logging.getLogger("dht.x").warning("shown %d", 1)
    assert human.getvalue().endswith("WARNING shown 1\n")
    assert "not shown" not in human.getvalue()

    logs.configure(stream=machine, log_format="json")
    logging.getLogger("dht.x").info("round %d", 3, extra={"root": "ab"})
    line = json.loads(machine.getvalue())
    assert (line["level"], line["logger"], line["message"], line["root"]) == ("info", "dht.x", "round 3", "ab")
    assert set(line) == {"time", "level", "logger", "message", "root"}
    assert "round 3" not in human.getvalue()
