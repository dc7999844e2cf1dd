"""The page of `serve` in a browser: what is on the screen, its script, and what strangers' text does there: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from ledger.explorer import page
from ledger.explorer.page import Site
from ledger.indexer.abi import Interface
from tests.ledger.chromium import Browser, Tab, browser
from tests.ledger.served import get_json, served_epoch, serving
from tests.ledger.world import UNIT, World, small_run

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOWN = """(() => {
    const texts = (nodes) => [...nodes].map((node) => node.innerText.trim());
    const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)].map((row) => texts(row.cells));
    const terms = texts(document.querySelectorAll("#status dt"));
    const values = texts(document.querySelectorAll("#status dd"));
    const plots = [...document.querySelectorAll("#plots svg")].map((svg) => ({
        title: svg.getAttribute("aria-label"),
        size: [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height],
        curves: [...svg.querySelectorAll('polyline[stroke-width="2"]')].map((line) =>
            [...line.points].map((point) => [point.x, point.y])),
    }));
    return { status: Object.fromEntries(terms.map((term, place) => [term, values[place]])), plots,
             leaderboard: rows("leaderboard"), epochs: rows("epochs"), peers: rows("peers") };
})()"""
EPOCH_3 = 'document.querySelectorAll("#epochs tbody tr").length === 3'
LOOK_AGAIN = 'document.dispatchEvent(new Event("visibilitychange"))'
NOTICE = 'document.getElementById("freshness").innerText'

HOSTILE = '<img src="https://evil.example/x" onerror="owned=1"><script>owned=1</script>'
"""In front of what it spoils: also texts that are cut off begin with it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, interface: Interface, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("ledger.explorer.live.POLL", 0.05)
    return small_run(tmp_path / "peer", interface)


@pytest_asyncio.fixture(loop_scope="module")
async def site(world: World, tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(world, tmp_path) as made:
        yield made


def number(text: str) -> int:
    return int(text.replace(",", ""))


def tokens(units: str | None) -> float | None:
    """An amount of JSON as the page rounds it down."""
    return None if units is None else int(units) * 10**6 // UNIT / 10**6


def shown_tokens(text: str) -> float | None:
    return None if text == "–" else float(text.replace(",", "").removesuffix(" MUR"))


def untroubled(tab: Tab, site: Site) -> None:
    """Nothing was complained of, and nothing was asked of another origin."""
    assert tab.complaints == []
    assert tab.requests and all(url.startswith(site.url) for url in tab.requests), tab.requests


@pytest.mark.parametrize("script", [True, False], ids=["with its script", "without"])
async def test_the_screen_shows_what_the_json_says(chromium: Browser, site: Site, script: bool):
    async with chromium.tab(script=script) as tab:
        await tab.open(site.url)
        shown = await tab.run(SHOWN)
        assert (f"{site.url}page.js" in tab.requests) == script
        untroubled(tab, site)
    status = await get_json(site, "status")
    assert number(shown["status"]["Epoch"].split()[0]) == status["epoch"] == 2
    assert number(shown["status"]["Tokens trained"]) == status["tokens"]
    assert shown["status"]["Model root"] == status["model_root"]
    assert [shown_tokens(shown["status"][name.capitalize()]) for name in ("stake", "earned", "claimed")] == [
        tokens(status[name]) for name in ("stake", "earned", "claimed")
    ]
    assert [(number(row[0]), row[1], number(row[2]), row[3]) for row in shown["leaderboard"]] == [
        (row["rank"], row["peer"], row["tokens"], f"{100 * row['share']:.2f}%")
        for row in await get_json(site, "leaderboard")
    ]
    assert [(number(row[0]), row[4], number(row[7]), row[9]) for row in shown["epochs"]] == [
        (row["epoch"], f"{row['first_round']}–{row['last_round']}", row["tokens"], row["model_root"])
        for row in await get_json(site, "epochs")
    ]
    assert [(*row[:3], *map(shown_tokens, (row[3], row[6], row[7]))) for row in shown["peers"]] == [
        (
            *(row["key"], row["peer"], row["wallet"] or "not enrolled"),
            *(tokens(row[name]) for name in ("stake", "earned", "claimed")),
        )
        for row in await get_json(site, "peers")
    ]


async def test_the_loss_curve_is_drawn(chromium: Browser, site: Site):
    async with chromium.tab() as tab:
        await tab.open(site.url)
        plots = (await tab.run(SHOWN))["plots"]
    wanted = await get_json(site, "plots")
    assert [plot["title"] for plot in plots] == [plot["title"] for plot in wanted]
    assert [[len(curve) for curve in plot["curves"]] for plot in plots] == [
        [len(line["points"]) for line in plot["lines"]] for plot in wanted
    ]
    assert all(min(plot["size"]) > 100 for plot in plots)
    (curve,), (line,) = plots[0]["curves"], wanted[0]["lines"]
    (first, second), (loss, later) = (point[1] for point in curve), (point[1] for point in line["points"])
    assert later < loss and second > first  # the loss falls, and y counts downwards


async def test_an_open_tab_follows_the_chain_and_says_when_it_cannot(chromium: Browser, world: World, tmp_path: Path):
    async with chromium.tab() as tab:
        async with serving(world, tmp_path) as site:
            await tab.open(site.url)
            await tab.run("window.untouched = true")
            world.checkpoint()
            await tab.wait_for(EPOCH_3)
            shown = await tab.run(SHOWN)
            assert shown["status"]["Epoch"].startswith("3 ") and len(shown["plots"][0]["curves"][0]) == 3
            assert await tab.run("untouched") and await tab.run(NOTICE) == ""
            untroubled(tab, site)
        await tab.run(LOOK_AGAIN)
        await tab.wait_for(f'{NOTICE} !== ""')
        assert "does not answer" in await tab.run(NOTICE) and await tab.run(SHOWN) == shown
        port = int(site.url.rstrip("/").rpartition(":")[2])
        async with serving(world, tmp_path, port):
            await tab.run(LOOK_AGAIN)
            await tab.wait_for(f'{NOTICE} === ""')


def poisoned(value: Any) -> Any:
    """Every text of the facts with a stranger's in front; numbers as they were."""
    if isinstance(value, dict):
        return {name: poisoned(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(entry) for entry in value]
    return HOSTILE + value if isinstance(value, str) and not value.isdigit() else value


async def test_what_strangers_wrote_is_shown_and_not_run(
    chromium: Browser, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    collect = page.collect

    async def hostile(session: Any) -> dict[str, Any]:
        return poisoned(await collect(session))

    monkeypatch.setattr(page, "collect", hostile)
    async with serving(world, tmp_path) as site, chromium.tab() as tab:
        await tab.open(site.url)
        for _ in range(2):  # as the server made it, and as the script put it there
            shown = await tab.run(SHOWN)
            peers = await get_json(site, "peers")
            assert all(row["peer"].startswith(HOSTILE) for row in peers)
            assert [row[1] for row in shown["peers"]] == [row["peer"] for row in peers]
            assert all(plot["title"].startswith(HOSTILE) for plot in shown["plots"])
            assert await tab.run("document.images.length + document.scripts.length") == 1
            assert await tab.run("typeof owned") == "undefined"
            if len(shown["epochs"]) == 2:
                world.checkpoint()
                await served_epoch(site, 3)
                await tab.run(LOOK_AGAIN)
                await tab.wait_for(EPOCH_3)
        untroubled(tab, site)


CONTRASTS = """(() => {
    const canvas = document.body.appendChild(document.createElement("i"));
    canvas.style.background = "Canvas";
    const light = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = light(getComputedStyle(canvas).backgroundColor);
    canvas.remove();
    return ["h1", "nav a", "footer a", "dd", "td", "svg text"].map((which) => {
        const style = getComputedStyle(document.querySelector(which));
        const front = light(which.startsWith("svg") ? style.fill : style.color);
        return (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
    });
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
async def test_it_can_be_read_on_any_screen(chromium: Browser, site: Site, width: int, dark: bool):
    async with chromium.tab(width=width, dark=dark) as tab:
        await tab.open(site.url)
        assert await tab.run("document.documentElement.scrollWidth") <= width
        # What is too wide scrolls within its region, which the keyboard reaches.
        assert await tab.run('[...document.querySelectorAll(".wide")].every((region) => region.tabIndex === 0)')
        # WCAG 2.2, 1.4.3: text has a contrast of 4.5 or more.
        assert all(ratio >= 4.5 for ratio in await tab.run(CONTRASTS))
        picture = await tab.picture()
        untroubled(tab, site)
    with Image.open(BytesIO(picture)) as image:
        colours = image.convert("RGB")
        corner = colours.getpixel((0, 0))
        assert isinstance(corner, tuple) and (max(corner) < 64 if dark else min(corner) > 192)
        drawn = {colour for _, colour in colours.getcolors(1 << 20) or []}
    assert (0, 0x72, 0xB2) in drawn  # the loss curve
