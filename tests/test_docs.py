"""The documentation agrees with the code: messages, refusals, exit codes, thresholds, commands, links and names."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

import averaging
import bootstrap.cli
import dht
from averaging.bulk import BulkKind
from averaging.certificate import faulty, quorum
from averaging.params import threshold, tolerated
from dht import errors
from dht.identity import Identity
from dht.wire import REGISTRY, Count, Length, Range, digest
from ledger.explorer import cli as explorer
from peer import cli
from tests.sim.test_rules import RULES

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")) if path.is_file()
)
PROTOCOL, THREATS, README = (ROOT / name for name in ("docs/protocol.md", "docs/threat-model.md", "README.md"))
ADDRESS = f"/ip4/203.0.113.5/tcp/31337/p2p/{Identity(digest('docs')).peer_id}"


def import_everything_with_messages() -> None:
    for package in (dht, averaging):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")


def table(page: Path, first_column: str) -> list[list[str]]:
    """Cells of the table whose header begins with `first_column`."""
    found: list[list[str]] = []
    inside = False
    for line in page.read_text().splitlines():
        if line.startswith(f"| {first_column} |"):
            inside = True
        elif inside and not line.startswith("|"):
            break
        elif inside and not line.startswith("|---"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert found, f"{page.name} has no table that begins with {first_column}"
    return found


def amount(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}..{high}"


def describe(hint: Any) -> str:
    """A field's type and bounds as the documentation writes them."""
    bound: Any = None
    if typing.get_origin(hint) is Annotated:
        hint, *bounds = typing.get_args(hint)
        bound = bounds[-1]
    if isinstance(bound, Count):
        return f"{amount(bound.low, bound.high)} × {describe(typing.get_args(hint)[0])}"
    if isinstance(bound, Length):
        return f"{amount(bound.low, bound.high)} {'bytes' if hint is bytes else 'bytes of text'}"
    if isinstance(bound, Range):
        unsigned = {2**bits - 1: f"u{bits}" for bits in (8, 16, 32, 64)}
        plain = amount(bound.low, bound.high)
        return unsigned.get(bound.high, plain) if bound.low == 0 else plain
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type, hint)
        registered = any(row.cls is cls for row in REGISTRY.values())
        return cls.__name__ if registered else f"{cls.__name__} ({fields_of(cls)})"
    return str(hint.__name__)


def fields_of(cls: type) -> str:
    hints = typing.get_type_hints(cls, include_extras=True)
    return "; ".join(f"`{field.name}` {describe(hints[field.name])}" for field in dataclasses.fields(cls))


def expected_messages() -> list[list[str]]:
    import_everything_with_messages()
    return [
        [f"`{tag:#04x}`", f"`{row.cls.__name__}`", fields_of(row.cls), str(row.cap)]
        for tag, row in sorted(REGISTRY.items())
        if row.cls.__module__.partition(".")[0] in ("dht", "averaging")  # tests may register their own
    ]


def test_every_message_is_documented_with_its_fields_bounds_and_cap():
    documented = table(PROTOCOL, "tag")
    assert [row[:4] for row in documented] == expected_messages()


def test_every_message_says_who_sends_it_and_what_is_refused():
    numbers = {int(refusal) for refusal in errors.Refusal}
    for row in table(PROTOCOL, "tag"):
        assert len(row) == 6, row
        assert row[4], f"{row[1]} has no sender"
        assert set(map(int, re.findall(r"\d+", row[5]))) <= numbers, row


def test_bulk_frames_are_documented():
    documented = {row[0]: row[1] for row in table(PROTOCOL, "bulk tag")}
    assert documented == {f"`{kind:#04x}`": f"`{kind.name}`" for kind in BulkKind}


def test_refusals_are_documented_by_number():
    documented = [(int(row[0]), row[1].strip("`")) for row in table(PROTOCOL, "number")]
    assert documented == [(int(refusal), refusal.name) for refusal in errors.Refusal]


def test_refusals_that_leave_the_stream_open_are_marked():
    from averaging.driver import _BENIGN

    stays_open = {row[1].strip("`") for row in table(PROTOCOL, "number") if row[3] == "stays open"}
    assert stays_open == {refusal.name for refusal in _BENIGN}


def error_classes() -> dict[str, type[errors.MurmurationError]]:
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    return {cls.__name__: cls for cls in classes if issubclass(cls, errors.MurmurationError)}


def test_exit_codes_are_documented():
    documented = {row[1].strip("`"): (int(row[0]), row[2].strip("`")) for row in table(README, "exit")}
    actual = {name: (cls.exit_code, cls.code) for name, cls in error_classes().items()}
    assert documented == actual


def test_thresholds_are_those_of_the_code():
    rows = [[int(cell) for cell in row] for row in table(THREATS, "n")]
    assert [row[0] for row in rows] == [*range(3, 17), 32, 64]
    for n, delta, t, colluders, needed, gone, mixed in rows:
        assert (delta, t, colluders) == (tolerated(n), threshold(n), 2 * threshold(n) - n - 1)
        assert (needed, gone) == (quorum(n), n - quorum(n))
        assert (gone, mixed) == (faulty(n), t - colluders)


def collected(path: Path) -> set[str]:
    """Names of the tests in a file, and of the scenarios that `test_the_rule_holds` runs."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions)}
    return {name for name in found if name.startswith("test_") or (path.name == "test_rules.py" and name in RULES)}


def test_every_attack_names_tests_that_exist_or_says_that_it_succeeds():
    for attack, outcome, tests in table(THREATS, "attack"):
        named = re.findall(r"`([^`]*)`", tests)
        assert named or "**Succeeds**" in outcome, f"no test: {attack}"
        for name in named:
            path, _, test = name.partition("::")
            assert test in collected(ROOT / path), f"{name} is no test: {attack}"


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    yield from re.findall(r'src="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert ROOT.resolve() in (target, *target.parents), f"{page.name}: {link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_an_index():
    for folder in (ROOT / "docs", ROOT / "docs" / "decisions"):
        index = folder / "README.md"
        linked = {(folder / link.partition("#")[0]).resolve() for link in links(index)}
        assert {page.resolve() for page in folder.glob("*.md") if page != index} <= linked


def code_lines(page: Path) -> Iterator[str]:
    """Lines of code blocks and inline code."""
    text = page.read_text()
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", prose)


def commands(page: Path, program: str) -> set[tuple[str, ...]]:
    """Arguments of each call of `program` in a page, comments and shell operators cut off."""
    found = set()
    for line in code_lines(page):
        for part in re.split(r"&&|;|#|\|", line):
            part = part.strip().removeprefix("$ ")
            if re.match(rf"(\S*/)?{re.escape(program)}( |$)", part):
                found.add(tuple(shlex.split(part.replace("ADDRESS", ADDRESS))[1:]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for arguments in commands(page, "make"):
        named = {word for word in arguments if "=" not in word}
        assert named <= targets, f"{page.name}: make {' '.join(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_console_commands_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # no peer.toml of this machine
    for variable in [name for name in os.environ if name.startswith("MURMURATION_")]:
        monkeypatch.delenv(variable)
    for arguments in commands(page, "run-peer"):
        if not {"--help", "--version"} & set(arguments):
            cli.parse(arguments)
    for arguments in commands(page, "run-bootstrap"):
        if not {"--help", "--version"} & set(arguments):
            bootstrap.cli.parse(arguments)
    for arguments in commands(page, "contribution-explorer"):
        if not {"--help", "--version"} & set(arguments):
            explorer.parse(arguments)


def test_the_readme_shows_the_commands():
    subcommands = {arguments[0] for arguments in commands(README, "run-peer") if arguments}
    assert subcommands >= {"init", "status", "doctor", "export"}
    assert commands(README, "run-bootstrap")
    assert {("demo",), ("test",)} <= commands(README, "make")


def resolves(name: str) -> bool:
    """Whether a dotted name leads from a package to an attribute that exists."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(value, attribute) and attribute not in getattr(value, "__dataclass_fields__", {}):
                return False
            value = getattr(value, attribute, None)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_code_exist(page: Path):
    """Paths, `package.module.name` and `tests/file.py::test` in inline code."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", text):
        if match := re.fullmatch(
            r"((?:dht|averaging|ledger|peer|bootstrap|tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?", code
        ):
            path = ROOT / match[1]
            assert path.is_file(), f"{page.name}: {code}"
            assert match[2] is None or re.search(rf"def {match[2]}\b", path.read_text()), f"{page.name}: {code}"
        elif re.fullmatch(r"(?:dht|averaging|peer|bootstrap)(?:\.\w+)+", code) and not code.endswith((".toml", ".log")):
            assert resolves(code), f"{page.name}: {code}"


if __name__ == "__main__":
    for row in expected_messages():
        print("| " + " | ".join(row) + " |")
