"""The state of a running peer as one value: built from events, written to a file, served as metrics.

`run-peer status` reads the file, so it needs no port and also tells the story of a peer that died.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dht.errors import ConfigError, StorageError
from peer.events import count, describe_loss, describe_privacy, items, megabytes, number, plain, short

if TYPE_CHECKING:
    from prometheus_client import Metric

LOSSES_KEPT = 50
PARTS = ("train", "aggregate", "wait")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a peer is doing. Times are Unix seconds, `seconds` and bytes are totals since the start."""

    peer: str = ""
    run: str = ""
    pid: int = 0
    started: float = 0.0
    updated: float = 0.0
    addresses: tuple[str, ...] = ()
    state: str = "starting"
    reason: str = ""
    round: int = 0
    step: str = ""
    members: int = 0
    survivors: int = 0
    root: str = ""
    rounds: int = 0
    void_rounds: int = 0
    tokens: int = 0
    tokens_per_second: float | None = None
    micro_batch: int = 0
    skipped_steps: int = 0
    sat_out_rounds: int = 0
    sat_out_cause: str = ""
    heldout_losses: tuple[float, ...] = ()
    heldout_loss: float | None = None  # of the state `root`, if it was measured
    train_loss: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    state_bytes: int = 0
    refused: int = 0
    blamed: int = 0
    recoveries: int = 0
    rollbacks: int = 0
    privacy: Mapping[str, float] | None = None

    def apply(self, name: str, fields: Mapping[str, object], now: float) -> Snapshot:
        """The snapshot after an event at Unix time `now`. Pure; an unknown event only moves `updated`."""
        get = fields.get
        after = replace(self, updated=now)
        match name:
            case "started":
                addresses = tuple(str(address) for address in items(get("addresses")))
                peer, run = str(plain(get("peer"))), str(plain(get("run")))
                current = count(get("round"))
                return replace(after, peer=peer, run=run, addresses=addresses, round=current, state="looking for peers")
            case "waiting":
                return replace(after, state="waiting", reason=str(get("reason")))
            case "joined":
                members = count(get("members"))
                return replace(after, state="running", reason="", round=count(get("round")), members=members)
            case "step":
                return replace(after, state="running", round=count(get("round")), step=str(get("step")))
            case "round":
                return after._after_round(fields)
            case "batch":
                speed = number(get("tokens_per_second"), None)
                return replace(after, micro_batch=count(get("micro")), tokens_per_second=speed)
            case "out_of_memory":
                return replace(after, micro_batch=count(get("micro")))
            case "skipped":
                return replace(after, skipped_steps=self.skipped_steps + 1)
            case "sat_out":
                return replace(after, sat_out_rounds=self.sat_out_rounds + 1, sat_out_cause=str(get("reason")))
            case "caught_up":
                return replace(after, round=count(get("round")), root=str(plain(get("root"))))
            case "recovery":
                return replace(after, recoveries=self.recoveries + 1)
            case "rolled_back":
                root = str(plain(get("root")))
                return replace(after, rollbacks=self.rollbacks + 1, round=count(get("round")), root=root)
            case "privacy":
                return replace(after, privacy=_privacy(fields))
            case "refused":
                return replace(after, refused=self.refused + 1)
            case "blamed":
                return replace(after, blamed=self.blamed + 1)
            case "leaving":
                return replace(after, state="leaving")
            case "stopped":
                return replace(after, state="stopped", step="")
            case "error":
                return replace(after, state="failed", reason=f"[{get('code')}] {get('message')}")
        return after

    def _after_round(self, fields: Mapping[str, object]) -> Snapshot:
        get = fields.get
        given = get("seconds")
        spent = given if isinstance(given, Mapping) else {}
        seconds = {part: self.seconds.get(part, 0.0) + number(spent.get(part), 0.0) for part in PARTS}
        void = bool(get("void"))
        losses = self.heldout_losses
        if not void and (loss := number(get("heldout_loss"), None)) is not None:
            losses = (*losses, loss)[-LOSSES_KEPT:]
        return replace(
            self,
            state="running",
            reason="",
            step="",
            round=count(get("round")),
            members=count(get("members")),
            survivors=count(get("survivors")),
            root=str(plain(get("root"))) if get("root") else self.root,
            rounds=self.rounds + (not void),
            void_rounds=self.void_rounds + void,
            tokens=max(self.tokens, count(get("tokens"))),
            tokens_per_second=number(get("tokens_per_second"), None) or self.tokens_per_second,
            heldout_losses=losses,
            heldout_loss=self.heldout_loss if void else number(get("heldout_loss"), None),
            train_loss=number(get("train_loss"), self.train_loss),
            bytes_up=self.bytes_up + count(get("bytes_up")),
            bytes_down=self.bytes_down + count(get("bytes_down")),
            seconds=seconds,
            state_bytes=count(get("state_bytes")) or self.state_bytes,
        )


def _privacy(given: object) -> Mapping[str, float] | None:
    """Epsilon, delta and budget as they were reported; numbers alone, whatever else an event says."""
    if not isinstance(given, Mapping):
        return None
    return {name: number(given.get(name), 0.0) for name in ("epsilon", "delta", "budget")}


class StatusReporter:
    """Keeps the snapshot of this process and writes it to `path` at every event, atomically."""

    def __init__(self, path: Path) -> None:
        now = time.time()
        self.path = path
        self.snapshot = Snapshot(pid=os.getpid(), started=now, updated=now)

    def event(self, name: str, /, **fields: object) -> None:
        """Apply the event and write the file. A full disk loses the snapshot, not the round."""
        self.snapshot = self.snapshot.apply(name, fields, time.time())
        temporary = self.path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(plain(asdict(self.snapshot)), indent=1))
            temporary.replace(self.path)
        except OSError:
            return

    def collect(self) -> Iterator[Metric]:
        """The snapshot as Prometheus metrics; this makes it a collector for a registry."""
        return metrics(self.snapshot)


def read(path: Path) -> Snapshot:
    """The snapshot in a file. Raises StorageError when there is none or it is not one."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        values["addresses"] = tuple(values["addresses"])
        values["heldout_losses"] = tuple(values["heldout_losses"])
        return Snapshot(**values)
    except FileNotFoundError:
        remedy = "start the peer first, or name its folder with --data-dir"
        raise StorageError(f"no peer has run in {path.parent}", remedy=remedy) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"cannot read the status in {path}: {error}", remedy="it is written anew at the next start"
        ) from error


def is_alive(snapshot: Snapshot) -> bool:
    """Whether the process that wrote the snapshot still runs; a later process of the same pid is not taken for it."""
    try:
        os.kill(snapshot.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    return _process_start(snapshot.pid) <= snapshot.started + 1.0


def _process_start(pid: int) -> float:
    """Unix time at which a process began; 0 where /proc does not tell."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0


def describe(snapshot: Snapshot, *, alive: bool, now: float) -> str:
    """The snapshot in lines for a terminal."""
    ended = snapshot.state in ("stopped", "failed")
    life = "running" if alive else ("ended" if ended else "DEAD: it ended without saying why; see its log")
    reason = f" ({snapshot.reason})" if snapshot.reason else ""
    seconds = ", ".join(f"{part} {value:.0f} s" for part, value in snapshot.seconds.items()) or "–"
    losses = snapshot.heldout_losses
    before = losses[-2] if len(losses) > 1 else None
    trouble = f"{snapshot.skipped_steps} local steps skipped, {snapshot.sat_out_rounds} rounds sat out"
    trouble += f" ({snapshot.sat_out_cause})" if snapshot.sat_out_cause else ""
    branches = f"{snapshot.recoveries} recoveries, rolled back {snapshot.rollbacks} times"
    rows = [
        ("peer", snapshot.peer or "–"),
        ("process", f"{snapshot.pid} · {life} · last word {max(0.0, now - snapshot.updated):.0f} s ago"),
        ("state", f"{snapshot.state}{reason}"),
        ("run", short(snapshot.run)),
        ("round", f"{snapshot.round}" + (f" · {snapshot.step}" if snapshot.step else "")),
        ("survivors", f"{snapshot.survivors}/{snapshot.members}"),
        ("rounds", f"{snapshot.rounds} certified, {snapshot.void_rounds} void · {snapshot.tokens} tokens"),
        ("training", _training(snapshot)),
        *([("trouble", trouble)] if snapshot.skipped_steps or snapshot.sat_out_rounds else []),
        *([("branches", branches)] if snapshot.recoveries or snapshot.rollbacks else []),
        ("loss", describe_loss(losses[-1] if losses else None, before)),
        ("traffic", f"up {megabytes(snapshot.bytes_up)} · down {megabytes(snapshot.bytes_down)}"),
        *([("privacy", describe_privacy(snapshot.privacy))] if snapshot.privacy else []),
        ("time", seconds),
        ("root", snapshot.root or "–"),
        *(("address", address) for address in snapshot.addresses),
    ]
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def _training(snapshot: Snapshot) -> str:
    if snapshot.tokens_per_second is None:
        return "–"
    cut = f" · micro-batches of {snapshot.micro_batch}" if snapshot.micro_batch else ""
    return f"{snapshot.tokens_per_second:.0f} tokens/s{cut}"


def metrics(snapshot: Snapshot) -> Iterator[Metric]:
    """Prometheus metrics of a snapshot; names as in docs/: `murmuration_*`."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    gauges = {
        "round": ("Number of the current round", snapshot.round),
        "members": ("Members of the last round", snapshot.members),
        "survivors": ("Survivors of the last round", snapshot.survivors),
        "heldout_loss": ("Held-out loss in nats", snapshot.heldout_losses[-1] if snapshot.heldout_losses else None),
        "train_loss": ("Training loss in nats", snapshot.train_loss),
        "tokens_per_second": ("Speed of local training, a moving average over rounds", snapshot.tokens_per_second),
        "micro_batch": ("Sequences that go through the model at a time", snapshot.micro_batch or None),
        "state_bytes": ("Size of the canonical state", snapshot.state_bytes),
        "epsilon": ("Privacy that the records of this peer lost so far", (snapshot.privacy or {}).get("epsilon")),
        "last_event_timestamp_seconds": ("When the peer last reported anything", snapshot.updated),
    }
    for name, (text, value) in gauges.items():
        if value is not None:
            yield GaugeMetricFamily(f"murmuration_{name}", text, value=value)
    counters = {
        "rounds": ("Certified rounds", snapshot.rounds),
        "void_rounds": ("Rounds that changed nothing", snapshot.void_rounds),
        "tokens": ("Tokens trained on", snapshot.tokens),
        "skipped_steps": ("Local steps skipped because something was not finite", snapshot.skipped_steps),
        "sat_out_rounds": (
            "Rounds that this peer added nothing to because its training broke",
            snapshot.sat_out_rounds,
        ),
        "bytes_sent": ("Bytes sent", snapshot.bytes_up),
        "bytes_received": ("Bytes received", snapshot.bytes_down),
        "refused_messages": ("Messages refused", snapshot.refused),
        "blamed_peers": ("Peers blamed", snapshot.blamed),
        "recoveries": ("Recovery branches that this peer went along with", snapshot.recoveries),
        "rollbacks": ("Times that another branch stood and rounds were rolled back", snapshot.rollbacks),
    }
    for name, (text, total) in counters.items():
        yield CounterMetricFamily(f"murmuration_{name}", text, value=total)
    times = CounterMetricFamily("murmuration_seconds", "Seconds spent, by what on", labels=["part"])
    for part, value in snapshot.seconds.items():
        times.add_metric([part], value)
    yield times


class MetricsServer:
    """Prometheus metrics of a reporter on 127.0.0.1, from a daemon thread; call it to stop.

    `port` 0 takes any free port; the attribute says which. Raises ConfigError if the port is taken.
    """

    def __init__(self, reporter: StatusReporter, port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(reporter)
        try:
            self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            remedy = "choose another --metrics-port"
            raise ConfigError(f"metrics port {port} is not free: {error.strerror}", remedy=remedy) from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
