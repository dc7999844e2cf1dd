"""JSON from strangers: the same values, and never a stack that overflows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.bounded_json import MOST_DEPTH, loads

plain = st.text(st.characters(exclude_characters="[]{}"), max_size=10)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | plain, lambda inner: st.lists(inner) | st.dictionaries(plain, inner)
)


@given(values)
def test_it_reads_what_json_reads(value):
    assert loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=50))
def test_noise_is_a_value_error_or_a_value(noise):
    try:
        expected = json.loads(noise)
    except ValueError:
        with pytest.raises(ValueError):
            loads(noise)
    else:
        assert loads(noise) == expected


def test_the_bound_is_exact():
    deep = b"[" * MOST_DEPTH + b"]" * MOST_DEPTH
    assert loads(deep) is not None
    with pytest.raises(ValueError, match="nested deeper"):
        loads(b"[" + deep + b"]")


def test_the_process_outlives_brackets_under_a_raised_recursion_limit():
    probe = (
        "import sys; sys.setrecursionlimit(100_000)\n"
        "from ledger.bounded_json import loads\n"
        "try:\n    loads(b'[' * 1_000_000)\nexcept ValueError:\n    print('refused')"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "refused\n")
