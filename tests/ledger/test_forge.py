"""Unit and invariant tests of the contracts in Solidity, by forge, on the bytes that are shipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from ledger.build import ARTIFACTS, CONTRACTS, MODULES, NAMES, install

TESTS = Path(__file__).parent / "contracts"
FORGE = MODULES / "@foundry-rs" / "forge-linux-amd64" / "bin" / "forge"


def project(folder: Path) -> Path:
    """A forge project of contracts, tests, and the creation code of the artifacts as constants."""
    shutil.copytree(CONTRACTS, folder / "src", ignore=lambda _, names: [name for name in names if name[-4:] != ".sol"])
    shutil.copytree(TESTS, folder / "test")
    shutil.copy(TESTS / "foundry.toml", folder)
    (folder / "node_modules").symlink_to(MODULES)
    constants = [f'    bytes internal constant {constant(name)} = hex"{code(name)}";\n' for name in NAMES]
    header = "// SPDX-License-Identifier: Apache-2.0\npragma solidity ^0.8.28;\n\nlibrary Artifacts {\n"
    (folder / "test" / "Artifacts.sol").write_text(header + "".join(constants) + "}\n")
    return folder


def constant(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def code(name: str) -> str:
    return json.loads((ARTIFACTS / f"{name}.json").read_text())["bytecode"][2:]


@pytest.mark.timeout(600)
def test_forge(tmp_path: Path):
    install()
    command = [FORGE, "test", "--use", CONTRACTS / "solc.js", "--json"]
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    run = subprocess.run(
        command, cwd=project(tmp_path), env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=580
    )
    assert run.stdout.startswith("{"), run.stdout + run.stderr
    suites = json.loads(run.stdout)
    results = {f"{suite} {name}": test for suite, told in suites.items() for name, test in told["test_results"].items()}
    failed = {name: test["reason"] for name, test in results.items() if test["status"] != "Success"}
    assert failed == {}
    assert len(suites) == len(list(TESTS.glob("*.t.sol")))
    assert run.returncode == 0, run.stderr
