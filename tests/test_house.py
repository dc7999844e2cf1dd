"""The house rules that no linter knows: sizes, words, imports that must stay cheap, and where packages come from."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("dht", "averaging", "ledger", "peer", "bootstrap")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MOST_LINES, MOST_FUNCTION_LINES = 500, 50
HEAVY = ("torch", "hivemind", "transformers", "bitsandbytes", "datasets", "scipy", "web3")
# What belongs to one machine, in pieces so that this file does not hold it.
FOREIGN = ["/" + "work/", "/" + "tmp/brief", "pypi" + ".org", "registry.npm" + "js", "deb." + "debian", "/" + "root/"]


@cache
def tracked() -> tuple[Path, ...]:
    """Every file of the repository, also those not committed yet, but nothing that is ignored."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = (ROOT / name for name in listing.stdout.split("\0") if name)
    return tuple(sorted(path for path in files if path.is_file()))


def python_files(*folders: str) -> list[Path]:
    files = [path for path in tracked() if path.suffix == ".py"]
    return [path for path in files if not folders or path.relative_to(ROOT).parts[0] in folders]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_listing_sees_the_house():
    assert {name(path) for path in tracked()} >= {"pyproject.toml", "dht/wire.py", "tests/test_house.py"}


def test_no_file_is_too_long_to_read():
    sizes = {name(path): len(path.read_text().splitlines()) for path in python_files()}
    assert {path: lines for path, lines in sizes.items() if lines > MOST_LINES} == {}


def test_functions_fit_on_a_screen():
    lengths = sorted(
        (node.end_lineno - node.lineno + 1, f"{name(path)}:{node.lineno} {node.name}")
        for path in python_files(*PACKAGES)
        for node in functions(ast.parse(path.read_text()))
        if node.end_lineno is not None
    )
    longest = lengths[int(len(lengths) * 0.95) :]
    assert longest[0][0] < MOST_FUNCTION_LINES, longest


def undocumented(path: Path) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring (nested functions are private)."""
    tree = ast.parse(path.read_text())
    if not ast.get_docstring(tree):
        yield name(path)
    todo: list[ast.AST] = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{name(path)}:{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                todo.append(node)


def test_everything_public_says_what_it_is():
    assert [gap for path in python_files(*PACKAGES) for gap in undocumented(path)] == []


def test_annotations_are_lazy_everywhere():
    def lazy(path: Path) -> bool:
        body = ast.parse(path.read_text()).body
        return len(body) <= 1 or any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in body)

    assert [name(path) for path in python_files(*PACKAGES, "benchmarks") if not lazy(path)] == []


def test_nothing_tracked_speaks_of_one_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{name(path)}: {word}" for word in FOREIGN if word in text]
    assert found == []


def test_text_files_end_with_one_newline_and_no_trailing_blanks():
    untidy = []
    for path in tracked():
        if path.suffix in (".py", ".toml", ".md", ".yaml", ".txt", "") and path.name not in ("LICENSE", "py.typed"):
            text = path.read_text()
            if not text.endswith("\n") or text.endswith("\n\n") or re.search(r"[ \t]+$", text, re.MULTILINE):
                untidy.append(name(path))
    assert untidy == []


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_packages_come_from_this_checkout(package: str):
    # `peer` and `ledger` are also names on the package index; a stray install must not win.
    module = importlib.import_module(package)
    assert Path(next(iter(module.__path__))).resolve() == (ROOT / package).resolve()


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed_and_shipped(package: str):
    assert (ROOT / package / "py.typed").is_file()
    assert package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"])
def test_commands_start_without_heavy_imports(script: str):
    module, function = PROJECT["project"]["scripts"][script].split(":")
    probe = (
        "import importlib, json, sys\n"
        f"assert callable(getattr(importlib.import_module({module!r}), {function!r}))\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {dotted.split(".")[0] for dotted in names}


def declared(*extras: str) -> list[Requirement]:
    optional = PROJECT["project"]["optional-dependencies"]
    return [
        Requirement(line)
        for lines in (PROJECT["project"]["dependencies"], *map(optional.get, extras))
        for line in lines
    ]


def test_every_third_party_import_is_declared_and_every_declaration_is_used():
    owners = {module: set(map(canonicalize_name, names)) for module, names in metadata.packages_distributions().items()}
    outside = set().union(*map(imported, python_files(*PACKAGES))) - set(PACKAGES) - set(sys.stdlib_module_names)
    used = set().union(*(owners.get(module, {module}) for module in outside))
    assert used == {
        canonicalize_name(requirement.name) for requirement in declared("data", "bnb", "finetune", "libp2p")
    }


def test_the_pinned_environment_satisfies_the_declared_ranges():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(pin): version for pin, version in (line.split("==") for line in lines)}
    assert pins["torch"] == "2.13.0"  # no local suffix: every index must be able to serve it
    for requirement in declared("data", "bnb", "finetune", "dev"):
        pinned = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement}, but {pinned} is pinned"
