"""Where one run's contracts are: `devnet.json` and `deployments/CHAIN_ID.json`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dht.errors import ConfigError, StorageError

DEVNET_FILE = "devnet.json"


@dataclass(frozen=True)
class Deployment:
    """`contracts`: 0x-prefixed address by name. `block`: no event is older. `run_id`: 32 bytes."""

    chain_id: int
    contracts: dict[str, str]
    block: int
    rpc: tuple[str, ...]
    run_id: bytes

    def to_json(self) -> dict[str, Any]:
        """The form that is kept in files."""
        return {
            "chain_id": self.chain_id,
            "contracts": self.contracts,
            "block": self.block,
            "rpc": list(self.rpc),
            "run_id": "0x" + self.run_id.hex(),
        }

    @classmethod
    def from_json(cls, found: Any) -> Deployment:
        """From `to_json`'s form. Raises KeyError, TypeError, ValueError or AttributeError."""
        contracts = {str(name): str(address) for name, address in found["contracts"].items()}
        for address in contracts.values():
            if len(bytes.fromhex(address.removeprefix("0x"))) != 20:
                raise ValueError(f"{address} is no address")
        if len({address.lower() for address in contracts.values()}) < len(contracts):
            raise ValueError("two contracts are at one address")
        run_id = bytes.fromhex(found["run_id"].removeprefix("0x"))
        return cls(int(found["chain_id"]), contracts, int(found["block"]), tuple(map(str, found["rpc"])), run_id)

    def save(self, path: Path) -> None:
        """Write it whole or not at all. Raises StorageError."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                file.write(json.dumps(self.to_json(), indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(
                f"cannot write {path}: {error.strerror}", remedy="free space or fix permissions"
            ) from None

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read a file. Raises ConfigError that says what is wrong with it."""
        try:
            return cls.from_json(json.loads(path.read_text()))
        except OSError as error:
            raise ConfigError(f"cannot read the deployment {path}: {error.strerror}", remedy="check the path") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no deployment: {error!r}", remedy="get the file again") from None


def shipped(chain_id: int) -> Deployment | None:
    """The deployment on a public chain that comes with the package, if there is one."""
    file = resources.files("ledger") / "deployments" / f"{chain_id}.json"
    return Deployment.from_json(json.loads(file.read_text())) if file.is_file() else None
