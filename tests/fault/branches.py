"""Many cases on one swarm: the history that they share is played once, and each goes on in a process of its own."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from tests.sim.cases import WATCHED, Kill, Outcome
from tests.sim.faults import FaultSwarm
from tests.sim.swarm import Peer

Play = Callable[[], Outcome]


@dataclass(frozen=True, slots=True)
class Child:
    """What a fork of this process is: it owes its parent one outcome."""

    fault: str
    seed: int
    pipe: int

    def tell(self, play: Play) -> NoReturn:
        """Play to the end and be gone. A case that cannot run counts as hung."""
        try:
            outcome = play()
        except BaseException as error:
            outcome = Outcome(self.fault, self.seed, 0, divergent=(f"could not run: {error!r}",), hangs=1)
        with os.fdopen(self.pipe, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)


def branch(fault: str, seed: int) -> Child | Outcome:
    """Fork. The child learns that it is one; the parent waits for what the child tells."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        gc.disable()  # it lives for a few rounds only, and need not look through, and so copy, what it inherits
        return Child(fault, seed, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    outcome: Outcome = pickle.loads(told)
    return outcome


def alone(fault: str, seed: int, play: Play) -> Outcome:
    """Play a case in a child process."""
    side = branch(fault, seed)
    return side.tell(play) if isinstance(side, Child) else side


def together(swarm: FaultSwarm, cases: Iterable[Kill]) -> list[Outcome]:
    """Play the swarm on without a fault. Each case leaves, in a child process, at the moment when it first strikes."""
    waiting = {case.fault: case for case in cases}
    outcomes: list[Outcome] = []
    mine: list[tuple[Child, Kill]] = []  # in a child: what it plays

    def look(event: str, peer: Peer) -> None:
        for case in [case for case in waiting.values() if case.due(event, peer)]:
            del waiting[case.fault]
            side = branch(case.fault, case.seed)
            if isinstance(side, Child):
                mine.append((side, case))
                swarm.on_event = case.look
                case.strike(peer)
                return
            outcomes.append(side)

    swarm.on_event = look
    failed: Exception | None = None
    try:
        swarm.run(lambda: bool(mine) or not waiting, WATCHED)
    except Exception as error:
        failed = error
    for child, case in mine:
        child.tell(case.play if failed is None else partial(_fail, failed))
    if failed is not None:
        raise failed
    return outcomes + [alone(case.fault, case.seed, case.play) for case in waiting.values()]


def _fail(error: Exception) -> NoReturn:
    raise error
