"""`make slither`: static analysis of the contracts. Exit code 1 for a finding that nobody has explained.

Slither (PyPI's slither-analyzer) needs web3 7, so it lives in an environment of its own. It asks for a native compiler;
what it gets is the one that makes the artifacts, behind a script of that name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ledger.build import ARTIFACTS, CONTRACTS, NAMES, SETTINGS, binary, source

EXPLAINED = {
    ("divide-before-multiply", "RewardPool.payAttestors()"): "what does not divide waits for the next payment",
    ("incorrect-equality", "PeerRegistry.burn()"): "a count of the contract's own: nobody can send a unit into it",
    ("incorrect-equality", "PeerRegistry.withdraw()"): "a count of the contract's own, too",
    ("unused-return", "Contradiction._roster(bytes)"): "reads past members that do not matter",
    ("unused-return", "Contradiction._vote(bytes)"): "the same",
    (
        "unused-return",
        "Contradiction._hash(bytes,Contradiction.Sums,uint256)",
    ): "the same, of a place",
    ("unused-return", "Contradiction._readSums(bytes)"): "the same",
    ("unused-return", "Slashing._punish(address,uint8,bytes32)"): "the amount is in the registry's event",
}
"""Why each finding of medium or high impact is none, by (detector, function)."""
IMPACTS = ("High", "Medium")


def standard_input() -> dict[str, Any]:
    """What the compiler is given, with all sources inside, and the outputs that slither reads."""
    names = {name for each in NAMES for name in json.loads((ARTIFACTS / f"{each}.json").read_text())["sources"]}
    wanted = ["abi", "metadata", "devdoc", "userdoc", "evm.bytecode", "evm.deployedBytecode", "evm.methodIdentifiers"]
    return {
        "language": "Solidity",
        "sources": {name: {"content": source(name)} for name in sorted(names)},
        "settings": {**SETTINGS, "outputSelection": {"*": {"*": wanted, "": ["ast"]}}},
    }


def analyse(slither: Path, folder: Path) -> list[dict[str, Any]]:
    """All findings outside of OpenZeppelin's contracts. Raises CalledProcessError when slither itself fails."""
    request = standard_input()
    for name, text in request["sources"].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text["content"])
    (folder / "input.json").write_text(json.dumps(request))
    compiler = folder / "bin" / "solc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec "{binary("node")}" "{CONTRACTS / "solc.js"}" "$@"\n')
    compiler.chmod(0o755)
    options = ["--compile-force-framework", "solc-json", "--filter-paths", "@openzeppelin", "--json", "found.json"]
    environment = {**os.environ, "PATH": f"{compiler.parent}:{os.environ['PATH']}"}
    # Its exit code counts findings; whether it ran is in the file.
    subprocess.run([slither, "input.json", *options], cwd=folder, env=environment, capture_output=True, check=False)
    found = json.loads((folder / "found.json").read_text())
    if not found["success"]:
        raise SystemExit(f"slither failed: {found['error']}")
    return list(found["results"].get("detectors", []))


def main(slither: Path) -> int:
    """Analyse, print what is of medium or high impact with its explanation; 1 if one has none."""
    with tempfile.TemporaryDirectory() as folder:
        found = analyse(slither, Path(folder))
    seen, unexplained = set(), 0
    for finding in (each for each in found if each["impact"] in IMPACTS):
        place = next(part for part in finding["elements"] if part["type"] == "function")
        contract = place["type_specific_fields"]["parent"]["name"]
        key = (finding["check"], f"{contract}.{place['type_specific_fields']['signature']}")
        why = EXPLAINED.get(key, "NOT EXPLAINED")
        unexplained += key not in EXPLAINED
        if key not in seen:
            print(f"{finding['impact']:<7} {key[0]:<24} {key[1]}: {why}")
        seen.add(key)
    vain = EXPLAINED.keys() - seen
    for check, where in sorted(vain):
        print(f"explained, but not found any more: {check} in {where}")
    print(f"{len(found)} findings, {len(seen)} of them medium or high, {unexplained} unexplained", file=sys.stderr)
    return int(bool(unexplained or vain))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
