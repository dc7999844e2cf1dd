"""Golden bytes of what is signed for the contracts: `python -m tests.ledger.contract_vectors` rewrites the file."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.contracts import RUN, STRUCTS, Key, Settings, signed
from tests.ledger.evm import Pyrevm

FILE = Path(__file__).parent.parent / "vectors" / "contracts.json"
SIGNER = Key("a signer of vectors")


def vectors() -> dict[str, Any]:
    """Digests and signatures for contracts at fixed addresses, each as the contract itself computes it."""
    evm = Pyrevm()
    evm.found([SIGNER], Settings())
    structs = []
    for kind, members in STRUCTS.items():
        contract = "Slashing" if kind in ("Verdict", "Veto") else "CheckpointHub"
        values = {name: _value(type_, name) for type_, name in (member.split() for member in members.split(","))}
        digest = evm.digest(kind, values, contract)
        row = {"type": f"{kind}({members})", "contract": evm.at[contract], "values": _plain(values)}
        structs.append(row | {"digest": digest.hex(), "signature": b"".join(SIGNER.compact(digest)).hex()})
        if contract == "CheckpointHub":  # the weight counts only if the signature is the attestor's
            assert evm.call("CheckpointHub", "signedWeight", digest, *signed([SIGNER], digest)) == (1, 1)
    wallet = evm.accounts[0]
    binding = {
        "registry": evm.at["PeerRegistry"],
        "wallet": wallet,
        "digest": evm.call("PeerRegistry", "bindingDigest", wallet).hex(),
        **dict(zip(["x", "y", "r", "vs"], (word.hex() for word in evm.binding(SIGNER, 0)), strict=True)),
    }
    return {"chain_id": evm.chain_id, "key": SIGNER.address, "structs": structs, "binding": binding}


def _value(type_: str, name: str) -> Any:
    """Something for each type, with high bits set where the type has them."""
    stream = sha256(name.encode()).digest()
    if name == "runId":
        return RUN
    if type_ == "bytes32":
        return stream
    if type_ == "address":
        return "0x" + stream[:20].hex()
    return int.from_bytes(stream, "big") % 2 ** int(type_.removeprefix("uint"))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")
