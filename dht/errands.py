"""Timers and tasks of one owner, which end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

K = TypeVar("K")


class Errands(Generic[K]):
    """Keyed timers, and tasks that nobody awaits. To be made and used on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def timers(self) -> frozenset[K]:
        """Keys of the timers that are not due yet."""
        return frozenset(self._timers)

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """Tasks that have not ended."""
        return frozenset(self._tasks)

    def set_timer(self, key: K, delay: float, due: Callable[[K], None]) -> None:
        """Call `due(key)` once after `delay` seconds, in place of what this key was to do."""
        self.cancel_timer(key)
        self._timers[key] = self._loop.call_later(delay, self._due, key, due)

    def cancel_timer(self, key: K) -> None:
        """The timer of this key, if there is one, does not come due."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it beside everything else. What it raises is its own affair."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel all timers and tasks, and wait for the tasks' ends."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _due(self, key: K, due: Callable[[K], None]) -> None:
        del self._timers[key]
        due(key)
