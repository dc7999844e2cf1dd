"""The artifacts are what the sources compile to, and what is shipped."""

from __future__ import annotations

import json
import re
import tomllib
from hashlib import sha256

import pytest

from dht.errors import ConfigError
from ledger import build

LOCK = (build.CONTRACTS / "package-lock.json").read_text()


@pytest.mark.timeout(300)
def test_the_sources_compile_to_the_committed_artifacts():
    build.install()
    committed = {path.stem: path.read_text() for path in build.ARTIFACTS.glob("*.json")}
    assert build.artifacts() == committed


def test_artifacts_have_the_documented_form():
    for name in build.NAMES:
        artifact = json.loads((build.ARTIFACTS / f"{name}.json").read_text())
        assert set(artifact) == {
            *("contractName", "abi", "bytecode", "deployedBytecode"),
            *("immutables", "compiler", "settings", "sources"),
        }
        assert artifact["contractName"] == name and artifact["settings"] == build.SETTINGS
        deployed = bytes.fromhex(artifact["deployedBytecode"][2:])
        assert 0 < len(deployed) <= 24_576  # EIP-170
        assert all(deployed[start : start + length] == bytes(length) for start, length in artifact["immutables"])
        source = (build.CONTRACTS / f"{name}.sol").read_bytes()
        assert artifact["sources"][f"{name}.sol"] == sha256(source).hexdigest()


def test_the_lock_file_pins_every_package_and_names_no_registry():
    packages = json.loads(LOCK)["packages"]
    pinned = {path: found for path, found in packages.items() if path}
    assert all("integrity" in found and "resolved" not in found for found in pinned.values())
    assert {"node_modules/solc", "node_modules/@openzeppelin/contracts"} <= set(pinned)


def test_the_wheel_ships_artifacts_and_nobody_elses_packages():
    root = build.CONTRACTS.parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert "ledger" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    # The build back end reads the ignore file of the repository's root, and no other.
    assert "node_modules/" in (root / ".gitignore").read_text().split()


def test_sources_are_short_and_say_who_may_use_them():
    for path in build.CONTRACTS.glob("*.sol"):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path.name
        assert text.startswith("// SPDX-License-Identifier: Apache-2.0\npragma solidity ^0.8.28;\n"), path.name
        assert re.search(r"^/// @title |^/// @notice ", text, re.MULTILINE), path.name


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Contracts of which one does not compile."""
    for path in build.CONTRACTS.glob("*.sol"):
        (tmp_path / path.name).write_text(path.read_text())
    for name in ("solc.js", "node_modules", "package-lock.json"):
        (tmp_path / name).symlink_to(build.CONTRACTS / name)
    token = tmp_path / "Token.sol"
    token.write_text(token.read_text().replace("_mint(to, amount);", "_mint(to);"))
    build.install()
    monkeypatch.setattr(build, "CONTRACTS", tmp_path)


def test_a_contract_that_does_not_compile_is_named(broken):
    with pytest.raises(ConfigError, match=r"Token\.sol"):
        build.artifacts()


def test_without_node_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match="make venv"):
        build.artifacts()
