"""A headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

DEADLINE = 20.0
"""Seconds that anything in the browser may take, on a busy machine too."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--metrics-recording-only")
_LISTENS = b"DevTools listening on "


def binary() -> str:
    """Chromium on this machine, or a failure that says how to get it."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found is not None, "the page is tested in Chromium, which is missing: apt install chromium"
    return found


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Browser]:
    """A running Chromium with an empty folder for its profile; ended with all its children."""
    # Chromium refuses to run its sandbox as root; all that it loads here is our own page.
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    arguments = (*FLAGS, *QUIET, *root, f"--user-data-dir={profile}")
    process = await asyncio.create_subprocess_exec(
        binary(), *arguments, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    tasks = []
    try:
        assert process.stderr is not None
        url = await _address(process.stderr)
        tasks.append(asyncio.create_task(process.stderr.read()))  # a full pipe would stop the browser
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            made = Browser(socket)
            tasks.append(asyncio.create_task(made.read()))
            yield made
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*tasks)


async def _address(errors: asyncio.StreamReader) -> str:
    """Where the browser listens, which it says on stderr."""
    said = b""
    async with asyncio.timeout(DEADLINE):
        async for line in errors:
            if line.startswith(_LISTENS):
                return line.removeprefix(_LISTENS).decode().strip()
            said += line
    raise AssertionError(f"Chromium ended: {said[-500:].decode(errors='replace')}")


@dataclass
class Browser:
    """One connection to the browser: commands go out numbered, answers and events come in."""

    socket: aiohttp.ClientWebSocketResponse
    tabs: dict[str, Tab] = field(default_factory=dict)
    waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    sent: int = 0

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's answer. Raises AssertionError when the browser refuses it, TimeoutError when it is silent."""
        self.sent += 1
        number, answer = self.sent, asyncio.get_running_loop().create_future()
        self.waiting[number] = answer
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        await self.socket.send_str(json.dumps(message))
        said: dict[str, Any] = await asyncio.wait_for(answer, DEADLINE)
        assert "error" not in said, (method, said["error"])
        return said["result"]

    async def read(self) -> None:
        """Hand on what comes in, until the connection is closed."""
        async for message in self.socket:
            said = json.loads(message.data)
            if "id" in said:
                self.waiting.pop(said["id"]).set_result(said)
            elif (tab := self.tabs.get(said.get("sessionId", ""))) is not None:
                tab.notice(said["method"], said["params"])

    @asynccontextmanager
    async def tab(self, *, script: bool = True, width: int = 1280, dark: bool = False) -> AsyncIterator[Tab]:
        """An empty tab that shares no storage with another one."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab = self.tabs[attached["sessionId"]] = Tab(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        await tab.call("Emulation.setScriptExecutionDisabled", value=not script)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        await tab.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await tab.call("Emulation.setEmulatedMedia", features=[scheme])
        try:
            yield tab
        finally:
            await self.call("Target.disposeBrowserContext", browserContextId=context)
            del self.tabs[tab.session]


@dataclass
class Tab:
    """One tab, and all that happened in it."""

    browser: Browser
    session: str
    complaints: list[str] = field(default_factory=list)
    """Errors, warnings and policy violations, as the console has them."""
    requests: list[str] = field(default_factory=list)
    loaded: asyncio.Event = field(default_factory=asyncio.Event)

    def notice(self, method: str, params: dict[str, Any]) -> None:
        """Keep an event that tests ask for."""
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(params))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """As `Browser.call`, for this tab."""
        return await self.browser.call(method, self.session, **params)

    async def open(self, url: str) -> None:
        """Go to a page and wait until all of it is loaded."""
        self.loaded.clear()
        found = await self.call("Page.navigate", url=url)
        assert "errorText" not in found, found
        await asyncio.wait_for(self.loaded.wait(), DEADLINE)

    async def run(self, script: str) -> Any:
        """The value of an expression, or what it promises. Raises AssertionError when it throws."""
        said = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Wait until an expression is true of the document, looked at whenever that changes."""
        await self.run(
            f"""new Promise((resolve) => {{
                const look = () => {{ if ({condition}) {{ watch.disconnect(); resolve(true); }} }};
                const watch = new MutationObserver(look);
                watch.observe(document, {{ subtree: true, childList: true, characterData: true, attributes: true }});
                look();
            }})"""
        )

    async def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])
