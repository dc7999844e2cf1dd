"""Frames between two processes on this machine: `python -m benchmarks.transport [--megabytes 512] [--loop uvloop]`.

Rows: bulk frames by the direct lane (sealed, over TCP) and through both libp2p daemons (TLS over TCP), acknowledged, 64
in flight; then the latency of small messages. CPU seconds per gigabyte for each of the four processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import report
from dht.host import Host
from dht.identity import Identity, PeerId

TAG = b"\xf0"
KIBIBYTES = (64, 128, 256, 512)
IN_FLIGHT = 64


def processor_seconds(daemon: int) -> tuple[float, float]:
    """CPU seconds so far of this process and of the daemon (Linux)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    fields = Path(f"/proc/{daemon}/stat").read_text().rsplit(")", 1)[1].split()
    return usage.ru_utime + usage.ru_stime, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def start(folder: Path, name: str, *, direct: bool = True) -> Host:
    path = folder / f"{name}.key"
    Identity.load_or_create(path)
    return await Host.start(path, direct=direct)


async def receive(folder: Path) -> None:
    """The receiving process: counts bytes, and tells its CPU seconds when asked."""
    host = await start(folder, "receiver")
    received = 0

    def on_frame(peer: PeerId, frame: memoryview) -> None:
        nonlocal received
        received += len(frame)

    async def on_request(peer: PeerId, frame: memoryview) -> Sequence[bytes]:
        return [TAG, json.dumps([received, *processor_seconds(host.p2p.pid)]).encode()]

    host.serve(on_frame, on_request)
    print(host.addresses()[0], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await host.stop()


async def transfer(host: Host, to: PeerId, size: int, total: int, lane: str) -> dict[str, Any]:
    """One row: `total` bytes in frames of `size`."""
    parts = [TAG + os.urandom(15), os.urandom(size - 16)]
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with slots:
            await host.send(to, parts, bulk=True)

    async def there() -> list[float]:
        reply = await host.request(to, [TAG, b"?"], timeout=30)
        return [float(value) for value in json.loads(bytes(reply[1:]))]

    await one()
    before, mine = await there(), processor_seconds(host.p2p.pid)
    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(total // size)))
    seconds = time.perf_counter() - started
    mine_after, after = processor_seconds(host.p2p.pid), await there()
    moved = after[0] - before[0]
    assert moved == total // size * size
    per_gigabyte = 1e9 / moved
    return {
        "lane": lane,
        "frame_kib": size // 1024,
        "mb_per_s": round(moved / 1e6 / seconds),
        "sender_cpu_s_per_gb": round((mine_after[0] - mine[0]) * per_gigabyte, 2),
        "sender_p2pd": round((mine_after[1] - mine[1]) * per_gigabyte, 2),
        "receiver_p2pd": round((after[2] - before[2]) * per_gigabyte, 2),
        "receiver": round((after[1] - before[1]) * per_gigabyte, 2),
    }


async def latency(host: Host, to: PeerId) -> list[dict[str, Any]]:
    """Rows: acknowledged send and request of 100 bytes, milliseconds."""
    rows = []
    body = [TAG, bytes(99)]
    for name, call in (
        ("send, 100 B", lambda: host.send(to, body)),
        ("request, 100 B", lambda: host.request(to, body, timeout=30)),
    ):
        times = []
        for _ in range(300):
            started = time.perf_counter()
            await call()
            times.append((time.perf_counter() - started) * 1e3)
        times.sort()
        rows.append({"latency": name, "p50_ms": round(statistics.median(times), 2), "p99_ms": round(times[296], 2)})
    return rows


async def measure(folder: Path, command: list[str], total: int) -> list[dict[str, Any]]:
    receiver = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert receiver.stdout is not None
    assert receiver.stdin is not None
    address = (await receiver.stdout.readline()).decode().strip()
    rows: list[dict[str, Any]] = []
    try:
        for lane in ("libp2p", "direct"):
            host = await start(folder, lane, direct=lane == "direct")
            try:
                to = await host.connect(address)
                rows += [await transfer(host, to, size * 1024, total, lane) for size in KIBIBYTES]
                if lane == "direct":
                    rows += await latency(host, to)
            finally:
                await host.stop()
        return rows
    finally:
        receiver.stdin.close()
        await receiver.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--receive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop == "uvloop":
        import uvloop

        uvloop.install()
    if arguments.receive:
        asyncio.run(receive(arguments.receive))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.transport", "--receive", folder, "--loop", arguments.loop]
        rows = asyncio.run(measure(Path(folder), command, arguments.megabytes << 20))
    report("transport", rows, title=f"frames between two peers ({arguments.loop})")


if __name__ == "__main__":
    main()
