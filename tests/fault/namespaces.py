"""Machines of their own for real peers: Linux network namespaces on one switch, slow links, and a switch cut in two.

Each machine has an address 10.99.0.x and a veth pair to a bridge in a hub namespace; the host's own network is not
touched. A partition moves some of the plugs to a second bridge: what is under way is lost without a word, both ways,
as with a cable pulled out. Needs root and iproute2; rates are token buckets (tbf) at both ends of a cable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack

PORT = 4001
_LATENCY = "400ms"


class CannotRunError(Exception):
    """This system lets nobody make such machines; says why."""


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRunError(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
    return done.stdout


class Machines:
    """`count` machines and the hub, in which the bootstrap server runs; `with` removes them all."""

    def __init__(self, count: int) -> None:
        """Raises CannotRunError."""
        if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
            raise CannotRunError(f"{' and '.join(missing)} not found: install iproute2")
        if os.geteuid() != 0:
            raise CannotRunError("namespaces are made by root only")
        self.count, self._name = count, f"mur{os.getpid()}"
        self._made = ExitStack()
        try:
            self._build()
        except BaseException:
            self._made.close()
            raise

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def _space(self, index: int) -> str:
        return f"{self._name}-{'hub' if index < 0 else index}"

    def _build(self) -> None:
        for index in range(-1, self.count):
            _ip("netns", "add", self._space(index))
            self._made.callback(_ip, "netns", "del", self._space(index))
            _ip("-n", self._space(index), "link", "set", "lo", "up")
        hub = self._space(-1)
        for bridge in ("one", "two"):
            _ip("-n", hub, "link", "add", bridge, "type", "bridge")
            _ip("-n", hub, "link", "set", bridge, "up")
        _ip("-n", hub, "addr", "add", f"{self.host(-1)}/24", "dev", "one")
        for index in range(self.count):
            space, plug = self._space(index), f"plug{index}"
            _ip("link", "add", "cable", "netns", space, "type", "veth", "peer", "name", plug, "netns", hub)
            _ip("-n", space, "addr", "add", f"{self.host(index)}/24", "dev", "cable")
            _ip("-n", space, "link", "set", "cable", "up")
            _ip("-n", hub, "link", "set", plug, "master", "one", "up")

    def host(self, index: int) -> str:
        """IPv4 address of a machine; -1 is the hub."""
        return f"10.99.0.{index + 2}"

    def place(self, index: int) -> str:
        """Where a program on this machine listens, as a multiaddress."""
        return f"/ip4/{self.host(index)}/tcp/{PORT}"

    def prefix(self, index: int) -> tuple[str, ...]:
        """What to put before a command so that it runs there."""
        return ("ip", "netns", "exec", self._space(index))

    def split(self, away: Iterable[int]) -> None:
        """Cut these machines off from the others and from the hub; they still reach each other."""
        for index in away:
            _ip("-n", self._space(-1), "link", "set", f"plug{index}", "master", "two")

    def heal(self) -> None:
        """All on one switch again."""
        for index in range(self.count):
            _ip("-n", self._space(-1), "link", "set", f"plug{index}", "master", "one")

    def _ends(self) -> Iterable[tuple[str, str]]:
        for index in range(self.count):
            yield self._space(index), "cable"
            yield self._space(-1), f"plug{index}"

    def limit(self, megabits: float) -> None:
        """Both ways of every cable carry so much at most."""
        for space, device in self._ends():
            rate = ("rate", f"{megabits}mbit", "burst", "32kb", "latency", _LATENCY)
            command = ["tc", "-n", space, "qdisc", "replace", "dev", device, "root", "tbf", *rate]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotRunError(f"`{' '.join(command)}`: {done.stderr.strip()}")

    def held(self) -> int:
        """How often a packet had to wait for a token, on all cables."""
        waited = 0
        for space, device in self._ends():
            told = subprocess.check_output(["tc", "-n", space, "-s", "-j", "qdisc", "show", "dev", device])
            waited += sum(entry.get("overlimits", 0) for entry in json.loads(told))
        return waited
