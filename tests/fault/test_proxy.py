"""The proxy does what the fault tests rely on: it carries bytes, and each fault is felt."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.fault.proxy import Proxies, Proxy


@pytest.fixture
def echo() -> Iterator[Proxy]:
    """A proxy in front of a server that sends everything back."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with Proxies() as proxies:
        yield proxies.before(server.getsockname()[1])
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def talk(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data) and (part := connection.recv(1 << 16)):
        got += part
    return got


def test_it_carries_both_ways_and_counts(echo):
    with socket.create_connection(("127.0.0.1", echo.port)) as connection:
        data = bytes(range(256)) * 1000
        assert talk(connection, data) == data
    assert echo.connections == 1
    assert echo.inward.carried == echo.outward.carried == len(data)


def test_delay_and_rate_are_felt(echo):
    with socket.create_connection(("127.0.0.1", echo.port)) as connection:
        assert talk(connection, b"x") == b"x"
        echo.inward.delay = 0.2
        began = time.monotonic()
        assert talk(connection, b"x") == b"x"
        assert time.monotonic() - began >= 0.2
        echo.inward.delay, echo.outward.rate = 0.0, 100_000.0
        began = time.monotonic()
        assert len(talk(connection, bytes(40_000))) == 40_000
        assert len(talk(connection, b"x")) == 1
        assert time.monotonic() - began >= 0.4


def test_a_stalled_way_keeps_its_connections_and_its_bytes(echo):
    with socket.create_connection(("127.0.0.1", echo.port)) as connection:
        assert talk(connection, b"before") == b"before"
        echo.stall(echo.outward)
        connection.sendall(b"meanwhile")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(10)
        echo.flow()
        assert connection.recv(100) == b"meanwhile"
        assert echo.outward.held == 1 and echo.inward.held == 0


def test_a_cut_ends_connections_and_lets_new_ones_in(echo):
    with socket.create_connection(("127.0.0.1", echo.port)) as connection:
        assert talk(connection, b"x") == b"x"
        echo.cut()
        connection.settimeout(10)
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert echo.cuts == 2
    with socket.create_connection(("127.0.0.1", echo.port)) as connection:
        assert talk(connection, b"y") == b"y"
