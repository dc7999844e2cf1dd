"""One peer of the baseline: hivemind's `DecentralizedAverager`, averaging in the clear; as published, but for one line
without which its 8-bit averaging does nothing (`_mend_quantization`).

The step waits for a trigger once its group has formed (`require_trigger`), so that all-reduce starts in all peers at
once, as a training run would do it. Bytes are what the averager and DHT processes hand to libp2p and take from it:
messages with their framing, without TLS; `dht.counters` counts ours in the same place.
"""

from __future__ import annotations

import time
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.averaging_swarm import SAMPLE, Spec, update

MATCHMAKING_SECONDS = 5.0  # hivemind's default; a group that is full starts at once
_START = 120.0  # seconds for its daemon to start: by default 15, too few where a hundred processes start at once
TOLERANCE = {"none": 2e-5, "float16": 2e-5, "uniform8": 5e-4}
"""What a result may be off by in updates of about 1e-3; a peer that silently kept its own values is off by more."""


def _mend_quantization() -> None:
    """Make hivemind 1.1.12's 8-bit averaging work with numpy 2.4 and later.

    There its `extract` raises (`int` of an array of one element), the reducers fail, and every step still reports
    success with unchanged tensors. Unreleased hivemind reads the size as below; the rest is as published.
    """
    import torch
    from hivemind.compression.quantization import Quantization

    def extract(self: Any, serialized: Any) -> Any:
        buffer = serialized.buffer
        size = np.frombuffer(buffer, count=1, dtype=np.int64).item()
        codebook = np.frombuffer(buffer, offset=8, count=size, dtype=self.codebook_dtype)
        indices = np.frombuffer(buffer, offset=8 + codebook.nbytes, dtype=self.indices_dtype)
        chosen = torch.as_tensor(indices, dtype=torch.int64).reshape(tuple(serialized.size))
        values = torch.as_tensor(codebook).to(dtype=getattr(torch, serialized.dtype))[chosen]
        return values.requires_grad_(serialized.requires_grad)

    Quantization.extract = extract


def _count_bytes() -> Any:
    """Patch hivemind's stream functions to count; the processes that it forks later share the counters."""
    from hivemind.p2p import P2P

    meter = get_context("fork").Array("q", 2)
    send, receive = P2P.send_raw_data, P2P.receive_raw_data

    async def counted_send(data: bytes, writer: Any, *, chunk_size: int = 2**16) -> None:
        with meter.get_lock():
            meter[0] += len(data) + P2P.HEADER_LEN + 1
        await send(data, writer, chunk_size=chunk_size)

    async def counted_receive(reader: Any) -> bytes:
        data: bytes = await receive(reader)
        with meter.get_lock():
            meter[1] += len(data) + P2P.HEADER_LEN + 1
        return data

    P2P.send_raw_data, P2P.receive_raw_data = staticmethod(counted_send), staticmethod(counted_receive)
    return meter


def serve(pipe: Connection, spec: Spec) -> None:
    """The process of one peer; returns when told to stop."""
    set_start_method("fork", force=True)  # hivemind's processes inherit its objects; a spawned process would spawn
    import hivemind
    import torch
    from hivemind.averaging.control import AveragingStage
    from hivemind.compression import Float16Compression, NoCompression, Uniform8BitQuantization

    torch.set_num_threads(1)
    meter = _count_bytes()
    _mend_quantization()
    kinds = {"float16": Float16Compression, "uniform8": Uniform8BitQuantization, "none": NoCompression}
    compression = kinds[spec.compression]()
    listen = ["/ip4/127.0.0.1/tcp/0"]
    first = hivemind.DHT(start=True, host_maddrs=listen, startup_timeout=_START) if spec.index == 0 else None
    pipe.send(("address", str(first.get_visible_maddrs()[0]) if first else ""))
    entry = pipe.recv()[0]
    dht = first or hivemind.DHT(start=True, host_maddrs=listen, initial_peers=[entry], startup_timeout=_START)
    tensor = torch.zeros(spec.parameters)
    averager = hivemind.DecentralizedAverager(
        averaged_tensors=[tensor],
        dht=dht,
        prefix="benchmark",
        target_group_size=spec.peers,
        initial_group_bits="",
        min_matchmaking_time=MATCHMAKING_SECONDS,
        compression=compression,
        start=True,
    )
    try:
        _rounds(pipe, spec, averager, torch.from_numpy(update(spec.index, spec.parameters)), meter, AveragingStage)
    finally:
        averager.shutdown()
        dht.shutdown()


def _rounds(pipe: Connection, spec: Spec, averager: Any, mine: Any, meter: Any, stages: Any) -> None:
    expected = np.load(spec.expected)
    while True:
        with averager.get_tensors() as tensors:
            tensors[0].copy_(mine)
        before = tuple(meter)
        control = averager.step(wait=False, require_trigger=True, timeout=120)
        while control.stage is not stages.AWAITING_TRIGGER and not control.done():
            time.sleep(0.01)
        pipe.send(("ready", None))
        if pipe.recv() == "stop":
            control.cancel()
            return
        control.allow_allreduce()
        group = control.result()
        finished = time.monotonic()
        with averager.get_tensors() as tensors:
            sample = tensors[0].numpy()[::SAMPLE].copy()
        wrong = float((abs(sample - expected) > TOLERANCE[spec.compression]).mean())
        up, down = (now - then for now, then in zip(tuple(meter), before, strict=True))
        pipe.send(("done", {"sum": finished, "up": up, "down": down, "wrong": wrong, "group": len(group or ())}))
