"""The page of `serve`: whole without a script, the same facts as JSON, and for this machine only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dht.errors import ConfigError
from ledger.explorer import page
from ledger.explorer.page import Site
from ledger.indexer.abi import Interface
from tests.ledger.served import get, get_json, served_epoch, serving
from tests.ledger.test_verify import session_of
from tests.ledger.world import PEERS, World, small_run

VOID = {"meta", "link", "br", "input", "polyline", "circle"}


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects what is asked about below."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.labels: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.attributes.append((tag, given))
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(given[name]) for name in ("href", "src") if name in given]
        self.labels += [str(given["aria-label"])] if "aria-label" in given else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def world(tmp_path: Path, interface: Interface) -> World:
    return small_run(tmp_path / "peer", interface)


@pytest.fixture
async def site(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr("ledger.explorer.live.POLL", 0.05)
    async with serving(world, tmp_path) as made:
        yield made


async def test_the_page_is_whole_without_a_script(site: Site):
    code, headers, body = await get(site, "/")
    assert code == 200 and headers["Content-Type"].startswith("text/html")
    reader = Reader()
    reader.feed(body.decode())
    assert reader.open == []
    assert "<!--" not in body.decode()
    assert {"status", "plots", "leaderboard", "epochs", "peers", "main"} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    leaderboard, epochs, peers = reader.tables
    assert [row[1] for row in leaderboard[1:]] == [str(peer) for peer in reversed(PEERS)]
    assert [row[0] for row in epochs[1:]] == ["2", "1"]
    assert len(peers) == 1 + len(PEERS)


async def test_the_page_is_accessible(site: Site):
    _, _, body = await get(site, "/")
    reader = Reader()
    reader.feed(body.decode())
    tags = [tag for tag, _ in reader.attributes]
    assert dict(reader.attributes[[tag for tag in tags].index("html")][1])["lang"] == "en"
    assert tags.count("h1") == 1 and tags.count("main") == 1 and tags.count("caption") == 3
    pictures = [given for tag, given in reader.attributes if tag == "svg"]
    assert len(pictures) == 3 and all(given["role"] == "img" and given["aria-label"] for given in pictures)
    assert all(given.get("scope") in ("col", "row") for tag, given in reader.attributes if tag == "th")
    fragments = {link[1:] for link in reader.links if link.startswith("#")}
    assert fragments and fragments <= set(reader.ids)


async def test_nothing_comes_from_elsewhere(site: Site):
    _, headers, body = await get(site, "/")
    reader = Reader()
    reader.feed(body.decode())
    assert all(link.startswith(("/", "#", "data:,")) for link in reader.links)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for link in {link for link in reader.links if link.startswith("/")}:
        code, _, data = await get(site, link)
        assert code == 200 and data
    script = (await get(site, "/page.js"))[2].decode() + (await get(site, "/page.css"))[2].decode()
    assert "http://" not in script and "https://" not in script


async def test_the_same_facts_are_json(site: Site):
    names = ("status", "epochs", "leaderboard", "peers", "slashes", "plots")
    found = {name: await get_json(site, name) for name in names}
    assert found["status"]["epoch"] == 2 and found["status"]["enrolled"] == 3
    assert [row["epoch"] for row in found["epochs"]] == [2, 1]
    assert sum(row["share"] for row in found["leaderboard"]) == pytest.approx(1)
    assert len(found["peers"]) == len(PEERS) and len(found["slashes"]) == 1
    assert [plot["title"].split(",")[0] for plot in found["plots"]] == [
        "training loss",
        "tokens per epoch",
        "share of the epoch's tokens",
    ]


async def test_it_follows_the_chain(site: Site, world: World):
    world.checkpoint()
    await served_epoch(site, 3)


async def test_others_are_turned_away(site: Site):
    assert (await get(site, "/nothing"))[0] == 404
    assert (await get(site, "/../pyproject.toml"))[0] == 404
    assert (await get(site, "/api/status", host="evil.example:80"))[0] == 421
    assert (await get(site, "/api/status", method="POST"))[0] == 501
    code, headers, body = await get(site, "/", method="HEAD")
    assert (code, body) == (200, b"") and int(headers["Content-Length"]) > 1000


async def test_a_taken_port_is_an_error(site: Site, world: World, tmp_path: Path):
    port = int(site.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=str(port)):
        Site(session_of(world, tmp_path / "other"), port)


def test_what_strangers_wrote_is_text():
    values = {"status": None, "leaderboard": [], "peers": [], "epochs": [], "plots": [], "slashes": []}
    nasty = '<script>alert("x")</script>'
    assert values and "<script>" not in page._table(nasty, [nasty, nasty], [[nasty, nasty]])
    assert "<script>" not in page._definitions([(nasty, nasty)])
