"""Random walks through the contracts' bytecode and a model of them: they never differ, in what they do or refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ledger.build import ARTIFACTS, CONTRACTS, NAMES
from tests.ledger.model.hub import RING
from tests.ledger.walk.base import COMPARED, FIRED, WRAPPED
from tests.ledger.walk.rewards import Rewards
from tests.ledger.walk.slashing import Slashes
from tests.ledger.walk.stakes import Stakes

STEPS = 20_000
WALKS, LENGTH = 260, 100
MODEL = Path(__file__).parent / "model"
ELSEWHERE = {
    *("BadGenesis", "BadSplits", "CapTooLarge", "SetNotWritten", "WindowTooLong", "WiredWrong"),  # of constructors
    *("Malformed", "NoContradiction", "UnknownKind"),  # of messages' bytes: test_message_evidence
}
"""Errors of the contracts that no walk meets."""
OPENZEPPELINS = {"Token.permit", "Token.delegate", "Token.delegateBySig"}
"""Functions that no walk calls: inherited as they are, and of no number here."""


class Contracts(Stakes, Rewards, Slashes):
    """All five contracts."""


def all_functions() -> set[str]:
    """Those of all contracts that may change something."""
    interfaces = {name: json.loads((ARTIFACTS / f"{name}.json").read_text())["abi"] for name in NAMES}
    return {
        f"{name}.{entry['name']}"
        for name, entries in interfaces.items()
        for entry in entries
        if entry["type"] == "function" and entry["stateMutability"] not in ("view", "pure")
    }


def test_the_contracts_and_their_model_never_differ() -> None:
    walks = settings(
        max_examples=WALKS,
        stateful_step_count=LENGTH,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # to shrink a walk takes longer than a test may; the assertion says what differed
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Contracts, settings=walks)
    print(f"{len(COMPARED)} steps, {sum(FIRED.values())} calls, {len(WRAPPED)} walks past {RING} epochs")
    assert len(COMPARED) >= STEPS
    sources = "".join(path.read_text() for path in MODEL.glob("*.py"))
    refusals = set(re.findall(r'Refused\(\s*"(\w+)"', sources))
    declared = {name for path in CONTRACTS.glob("*.sol") for name in re.findall(r"error (\w+)\(", path.read_text())}
    assert refusals | declared - ELSEWHERE <= {name for _, name in FIRED}
    done = {function for function, name in FIRED if not name}
    refused_only = {"Token.mint", "PeerRegistry.slash"}  # they are for the pool and for Slashing
    assert (done | refused_only) - {"wait"} == all_functions() - OPENZEPPELINS
    assert {
        ("Slashing.executeVerdict", "OverVerdictCap"),
        ("CheckpointHub.rollback", "AlreadyActive"),
        ("RewardPool.claim", "OverPromised"),
        ("RewardPool.payUsage", "ERC20InsufficientAllowance"),
        ("Slashing.vetoVerdict", "NoQuorumOf"),
    } <= FIRED.keys()
    assert WRAPPED, "the hub's ring never went round"
