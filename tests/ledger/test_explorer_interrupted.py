"""Ctrl-C, as a person presses it: real processes on a terminal of their own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.ledger.net import ROOT, Net, checkpoint, propose

DEADLINE = 30.0
CTRL_C = b"\x03"
SCREEN_ON, SCREEN_OFF, CURSOR_OFF, CURSOR_ON = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25l", b"\x1b[?25h"
OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "ledger.explorer.cli", *sys.argv[1:]])
"""
"""Makes stdin the terminal that sends the process a SIGINT when it reads Ctrl-C."""


@dataclass
class Terminal:
    """A process on a pseudo-terminal, from the keyboard's side."""

    process: subprocess.Popen[bytes]
    keyboard: int
    line: int
    settings: list[object]
    seen: bytes = field(default=b"")

    def until(self, words: bytes) -> None:
        """Read until the screen has had these bytes."""
        end = time.monotonic() + DEADLINE
        while words not in self.seen:
            assert self.read(end - time.monotonic()), self.seen[-2000:]

    def read(self, seconds: float) -> bool:
        """Read what comes within some time; whether anything did."""
        if not select.select([self.keyboard], [], [], max(0.0, seconds))[0]:
            return False
        self.seen += os.read(self.keyboard, 1 << 16)
        return True

    def press(self, key: bytes) -> None:
        os.write(self.keyboard, key)

    def end(self) -> int:
        """The exit code, once the process is over and everything that it printed is read."""
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None:  # a terminal that nobody reads stops who prints
            assert time.monotonic() < end, self.seen[-2000:]
            self.read(0.1)
        while self.read(0):
            pass
        return self.process.returncode


@contextmanager
def terminal(net: Net, *arguments: str) -> Iterator[Terminal]:
    keyboard, line = pty.openpty()
    settings = termios.tcgetattr(line)
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "200", "LINES": "60"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", OWN_TERMINAL, *arguments, *places(net)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=line, stdout=line, stderr=line)
    try:
        yield Terminal(process, keyboard, line, settings)
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
        os.close(line)


def places(net: Net) -> tuple[str, ...]:
    return ("--deployment", net.ready["deployment"], "--index", str(net.folder / "watch.db"))


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A node that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        yield listener


def test_ctrl_c_ends_watch_and_leaves_the_terminal_as_it_was(net: Net):
    with terminal(net, "watch") as screen:
        screen.until(SCREEN_ON)
        screen.until(b"no checkpoint yet")
        made, _ = checkpoint(net)
        propose(net, made)
        screen.until("1–3".encode())  # the rounds of the first epoch: it follows the chain
        screen.press(CTRL_C)
        assert screen.end() == 0
        assert termios.tcgetattr(screen.line) == screen.settings
    assert screen.seen.count(SCREEN_ON) == screen.seen.count(SCREEN_OFF) == 1
    assert screen.seen.rindex(SCREEN_OFF) > screen.seen.rindex(SCREEN_ON)
    assert screen.seen.rindex(CURSOR_ON) > screen.seen.rindex(CURSOR_OFF)
    assert b"Traceback" not in screen.seen and b"error" not in screen.seen


def test_ctrl_c_ends_what_waits_for_a_node(net: Net, deaf: socket.socket):
    with terminal(net, "status", "--rpc", f"http://127.0.0.1:{deaf.getsockname()[1]}") as screen:
        connection, _ = deaf.accept()
        with connection:
            screen.press(CTRL_C)
            assert screen.end() == 130
    assert b"Traceback" not in screen.seen


def test_ctrl_c_ends_the_page(net: Net):
    command = [sys.executable, "-m", "ledger.explorer.cli", "serve", "--port=0", "--json", *places(net)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, cwd=ROOT, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with urllib.request.urlopen(ready["url"], timeout=DEADLINE) as answer:
            assert b"<h1>Run" in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
        assert (process.returncode, out, err) == (0, b"", b"")
    finally:
        process.kill()
        process.communicate()
