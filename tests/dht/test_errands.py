"""Timers and tasks that end with their owner."""

from __future__ import annotations

import asyncio

from dht.errands import Errands


async def test_a_timer_is_due_once_and_the_last_setting_counts():
    errands: Errands[str] = Errands()
    due: asyncio.Queue[str] = asyncio.Queue()
    errands.set_timer("a", 3600, lambda key: due.put_nowait(f"late {key}"))
    errands.set_timer("a", 0, due.put_nowait)
    errands.set_timer("b", 0, due.put_nowait)
    errands.cancel_timer("b")
    errands.cancel_timer("never set")
    assert errands.timers == {"a"}
    async with asyncio.timeout(10):
        assert await due.get() == "a"
    assert errands.timers == frozenset() and due.empty()


async def test_a_timer_may_set_itself_again():
    errands: Errands[int] = Errands()
    rounds, done = [], asyncio.Event()

    def again(key: int) -> None:
        rounds.append(key)
        if len(rounds) == 3:
            done.set()
        else:
            errands.set_timer(key, 0, again)

    errands.set_timer(7, 0, again)
    async with asyncio.timeout(10):
        await done.wait()
    assert rounds == [7, 7, 7] and not errands.timers


async def test_stop_ends_timers_and_tasks_and_waits_for_them():
    errands: Errands[str] = Errands()
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("task")

    async def wrong() -> None:
        raise ValueError("its own affair")

    task, failed = errands.spawn(work()), errands.spawn(wrong())
    errands.set_timer("a", 3600, lambda key: None)
    await asyncio.wait([failed])
    assert isinstance(failed.exception(), ValueError)
    assert errands.tasks == {task}
    await errands.stop()
    assert ended == ["task"] and task.cancelled()
    assert not errands.tasks and not errands.timers
