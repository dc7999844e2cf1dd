"""The golden files are what the kernels compute: a change here is a change of protocol."""

import importlib.util
import json
from pathlib import Path

import pytest

VECTORS = Path(__file__).parents[1] / "vectors"


def _generator():
    spec = importlib.util.spec_from_file_location("vectors_generate", VECTORS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["shamir", "keys", "masking", "rotation", "encoding"])
def test_golden_file_matches(name):
    computed = json.loads(json.dumps(_generator().VECTORS[name]()))
    assert computed == json.loads((VECTORS / f"{name}.json").read_text())
