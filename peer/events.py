"""What a running peer reports: named events with fields, and the ways to show them.

    started(peer, addresses, run, round)      joined(round, members)          step(round, attempt, step)
    waiting(reason)                           refused(peer, reason)           peer_unreachable(peer, reason)
    round(round, void, survivors, members,    blamed(peer, reason)            error(code, message, remedy)
          heldout_loss, train_loss, tokens,   caught_up(round, root, chunks,  leaving(reason)
          tokens_per_second, bytes_up,                  bytes, donors)        stopped(round, root)
          bytes_down, seconds, root,          bootstrap(address, verdict)
          state_bytes)
    batch(sequences, sequence_length, micro, accumulation, tokens_per_second, steps, local_steps)
    out_of_memory(before, micro)              skipped(loss, norm, in_a_row)   sat_out(round, reason)
    warning(text)                             privacy(epsilon, delta, budget)
    recovery(round, members, missing)         rolled_back(fork, left, round, root)
    checkpoint(epoch, last_round, root,       checkpoint_rolled_back(epoch, fork_nonce)
               tally, active_epoch)

`seconds` is {"train", "aggregate", "wait"}; `survivors` and `members` are lists of peer ids; `tokens` counts from the
start of the process, bytes and seconds from the round before. Reporters never raise for a field that is missing: a
report must not end a round.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

STEPS = ("train", "shares", "upload", "survivors", "unmask", "sum", "commit")


class Reporter(Protocol):
    """Whoever wants to know what the peer does."""

    def event(self, name: str, /, **fields: object) -> None:
        """Take note of one event. Must return at once and never raise."""
        ...


class Tee:
    """Hands every event to several reporters, in order."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters

    def event(self, name: str, /, **fields: object) -> None:
        """Pass the event on."""
        for reporter in self.reporters:
            reporter.event(name, **fields)


def from_threads(reporter: Reporter) -> Callable[..., None]:
    """`reporter.event` for work in threads: what they tell is passed on by the running loop, in order."""
    loop = asyncio.get_running_loop()

    def tell(name: str, **fields: object) -> None:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(partial(reporter.event, name, **fields))

    return tell


class JsonReporter:
    """One JSON object per line with `event` and `time` (Unix seconds); see `plain` for how values are written."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    def event(self, name: str, /, **fields: object) -> None:
        """Write one line."""
        line = {"event": name, "time": round(time.time(), 3), **fields}
        # A reader that went away (`| head`) is no reason to stop training.
        write_line(self.stream, json.dumps(plain(line), separators=(",", ":")))


class LineReporter:
    """One line of text per event that a person wants to read; steps within a round are not shown."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._last_loss: float | None = None
        self._last_line = ""

    def event(self, name: str, /, **fields: object) -> None:
        """Write one line, unless it would repeat the one before."""
        line = describe(name, fields, self._last_loss)
        if name == "round":
            self._last_loss = number(fields.get("heldout_loss"), self._last_loss)
        if line and line != self._last_line:
            self._last_line = line
            write_line(self.stream, line)


class ErrorReporter:
    """Errors as lines, and nothing else."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._lines = LineReporter(stream)

    def event(self, name: str, /, **fields: object) -> None:
        """Write one line if it is an error."""
        if name == "error":
            self._lines.event(name, **fields)


def describe(name: str, fields: Mapping[str, object], last_loss: float | None = None) -> str:
    """An event in words, or "" for those not worth a line. `last_loss` is the round's before, for the difference."""
    get = fields.get
    match name:
        case "started":
            lines = [f"peer {get('peer')} · run {short(get('run'))} · round {get('round', 0)}"]
            addresses = items(get("addresses"))
            lines += [f"  listening on {address}" for address in addresses]
            if addresses:
                reachable = [address for address in addresses if "/127." not in str(address)]
                where = (reachable or addresses)[0]
                lines.append(f"  others join with: run-peer --run run.toml --bootstrap {where} --data TEXT")
            return "\n".join(lines)
        case "bootstrap":
            return f"  bootstrap {get('address')}: {get('verdict')}"
        case "waiting":
            return f"waiting: {get('reason')}"
        case "joined":
            return f"in round {get('round')} with {count(get('members'))} members"
        case "round":
            return describe_round(fields, last_loss)
        case "batch":
            return describe_batch(fields)
        case "out_of_memory":
            return f"out of memory with {get('before')} sequences at a time: going on with {get('micro')}"
        case "skipped":
            return f"skipped a local step: loss {get('loss')}, gradient norm {get('norm')}"
        case "sat_out":
            return f"round {get('round')} · sitting out, starting over from the certified model: {get('reason')}"
        case "warning":
            return f"warning: {get('text')}"
        case "caught_up":
            size, donors = megabytes(get("bytes")), count(get("donors"))
            return f"caught up to round {get('round')} · {size} from {donors} donors · root {short(get('root'))}"
        case "privacy":
            return f"privacy of this peer's records: {describe_privacy(fields)}"
        case "recovery":
            gone = count(get("missing"))
            return f"round {get('round')} · recovery branch: {count(get('members'))} go on without {gone} that are gone"
        case "rolled_back":
            rounds = count(get("left")) - count(get("fork"))
            return f"another branch stands: {rounds} rounds after {get('fork')} rolled back, their updates are kept"
        case "checkpoint_rolled_back":
            return f"checkpoint {get('epoch')} was rolled back on the chain · fork nonce {get('fork_nonce')}"
        case "refused" | "blamed" | "peer_unreachable":
            return f"{name.replace('_', ' ')}: {tail(get('peer'))}: {get('reason')}"
        case "leaving":
            return f"leaving: {get('reason')}"
        case "stopped":
            return f"stopped after round {get('round')} · root {short(get('root'))}"
        case "error":
            remedy = f" ({get('remedy')})" if get("remedy") else ""
            return f"error [{get('code')}] {get('message')}{remedy}"
    return ""


def describe_round(fields: Mapping[str, object], last_loss: float | None = None) -> str:
    """The one line that a round gets."""
    get = fields.get
    who = f"{count(get('survivors'))}/{count(get('members'))} survivors"
    if get("void"):
        return f"round {get('round')} · void · {who} · nothing changed, the update is kept"
    given = get("seconds")
    seconds = given if isinstance(given, Mapping) else {}
    times = ", ".join(f"{part} {number(seconds.get(part), 0.0):.1f} s" for part in ("train", "aggregate", "wait"))
    traffic = f"up {megabytes(get('bytes_up'))} down {megabytes(get('bytes_down'))}"
    loss = describe_loss(get("heldout_loss"), last_loss)
    return f"round {get('round')} · {who} · loss {loss} · {times} · {traffic} · root {short(get('root'))}"


def describe_batch(fields: Mapping[str, object]) -> str:
    """How local steps go through the model here, and how many of them fit."""
    get = fields.get
    steps, wanted = count(get("steps")), count(get("local_steps"))
    fits = f"all {wanted}" if steps >= wanted else f"about {steps} of {wanted}"
    size = f"a step is {get('sequences')} x {get('sequence_length')} tokens, {get('micro')} sequences at a time"
    speed = f"{number(get('tokens_per_second'), 0.0):.0f} tokens/s"
    return f"  {size} · {speed} · {fits} steps fit in the train deadline"


def describe_loss(loss: object, last: float | None = None) -> str:
    """A loss in nats with the change since the last one: `3.412 (-0.020)`."""
    value = number(loss, None)
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({value - last:+.3f})" if last is not None else "")


def describe_privacy(fields: Mapping[str, object]) -> str:
    """What was spent: `epsilon 1.234 of 8 (delta 1e-06)`; infinite where no promise is left."""
    get = fields.get
    epsilon = number(get("epsilon"), math.inf)
    return f"epsilon {epsilon:.3f} of {number(get('budget'), 0.0):g} (delta {number(get('delta'), 0.0):g})"


def plain(value: object) -> Any:
    """A value in JSON's types: bytes as hex (peer ids as base58), paths as text, not-finite numbers as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        # A PeerId is bytes whose str() is the text that people paste; that of bare bytes starts with b'.
        return bytes(value).hex() if type(value) in (bytes, bytearray, memoryview) else str(value)
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, str | int):
        return value
    return str(value) if isinstance(value, Path) or not hasattr(value, "__float__") else plain(float(value))


def write_line(stream: TextIO, line: str) -> None:
    """Write and flush one line; a reader that has gone is ignored."""
    try:
        stream.write(line + "\n")
        stream.flush()
    except (BrokenPipeError, ValueError):
        return


def items(value: object) -> Sequence[object]:
    """The entries of a list-like field; empty when there is none."""
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def count(value: object) -> int:
    """How many: of a list its length, of a number itself."""
    return value if isinstance(value, int) else len(items(value))


def number(value: object, default: Any) -> Any:
    """A finite float, or `default`."""
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return default
    return result if math.isfinite(result) else default


def megabytes(value: object) -> str:
    """A byte count for people: `4.1 MB`."""
    size = number(value, 0.0)
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def short(value: object) -> str:
    """The head of a hash: `9a3f01c2…`."""
    text = str(plain(value)) if value else ""
    return f"{text[:8]}…" if text else "–"


def tail(value: object) -> str:
    """The end of a peer id, which is where peer ids differ: `…Xq3kZb7T`."""
    text = str(plain(value)) if value else ""
    return f"…{text[-8:]}" if text else "–"
