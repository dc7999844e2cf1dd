"""The base fee of a block, from its parent's (EIP-1559)."""

from __future__ import annotations

INITIAL_BASE_FEE = 1_000_000_000
SUGGESTED_TIP = 1_000_000_000
_ELASTICITY = 2
_CHANGE_DENOMINATOR = 8


def next_base_fee(base_fee: int, gas_used: int, gas_limit: int) -> int:
    """Wei per gas: up to an eighth more or less than the parent's, as its gas was over or under half its limit."""
    target = gas_limit // _ELASTICITY
    change = base_fee * abs(gas_used - target) // target // _CHANGE_DENOMINATOR
    if gas_used > target:
        return base_fee + max(change, 1)
    return base_fee - change
