"""Asking one helper for both secrets of one victim: before and after a restart, and in two processes with one identity.

The helper's promises are in one file. Everything else is made again from seeds in each process, so the processes are
the same member of the same cohort; the colluders, four of five, vote whatever they like.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from averaging.guard import SqliteGuard
from averaging.messages import Unmask
from averaging.survivors import bitmap
from tests.averaging.cohort_net import CohortNet
from tests.sim.test_rules import another_life, other_certificate

ROOT = Path(__file__).parents[2]
HELPER, VICTIM, COLLUDERS = 3, 0, [0, 1, 2, 4]
ALIVE, DEAD = bitmap((0, 1, 2, 3, 4)), bitmap((1, 2, 3, 4))


def ask(path: Path, *, dead: bool) -> str:
    """Certify the victim alive or dead to the helper whose guard is in this file: what it releases, or why not."""
    net = CohortNet(5).run()
    net.nodes[HELPER].guard = SqliteGuard(path)
    life = another_life(net, HELPER)
    answers = other_certificate(net, life, VICTIM if dead else 99, COLLUDERS)
    released = [answer for answer in answers if isinstance(answer, Unmask)]
    net.nodes[HELPER].guard.close()
    if released:
        return f"released {released[0].survivors}"
    return f"refused: {life.failed.reason if life.failed else 'no reason'}"


def in_another_process(path: Path, *, dead: bool) -> subprocess.Popen[str]:
    code = f"""
import time
from pathlib import Path
from tests.attacks.test_both_secrets import ask
print(ask(Path({str(path)!r}), dead={dead}), flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("dead_first", [False, True])
def test_the_second_secret_is_refused_in_the_same_life_after_sigkill_and_beside_the_first(
    tmp_path: Path, dead_first: bool
) -> None:
    path = tmp_path / "guard.sqlite"
    first = in_another_process(path, dead=dead_first)
    kept = DEAD if dead_first else ALIVE
    assert said(first) == f"released {kept}"
    beside = ask(path, dead=not dead_first)  # the first one is still running
    end(first)
    after = ask(path, dead=not dead_first)
    for answer in (beside, after):
        assert answer.startswith("refused") and "the other seed of member 0 was released" in answer
    assert ask(path, dead=dead_first) == f"released {kept}"  # the same again is fine


def test_of_two_processes_that_are_asked_at_once_one_releases(tmp_path: Path) -> None:
    path = tmp_path / "guard.sqlite"
    SqliteGuard(path).close()
    both = [in_another_process(path, dead=dead) for dead in (True, False)]
    answers = [said(process) for process in both]
    end(*both)
    assert sorted(answer.split()[0].rstrip(":") for answer in answers) == ["refused", "released"]
