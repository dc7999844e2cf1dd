"""eth_getLogs: what a filter object means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ledger.embedded.jsonrpc import RpcError, data, invalid, rejected
from ledger.embedded.store import Store
from ledger.embedded.views import log_view

MOST_LOGS = 10_000
MOST_ALTERNATIVES = 256
LIMIT_EXCEEDED = -32005


def find_logs(store: Store, wanted: Any, number_of: Callable[[Any], int], head: int) -> list[dict[str, Any]]:
    """The logs that a filter asks for, oldest first. Raises RpcError, also when there are more than `MOST_LOGS`."""
    if not isinstance(wanted, dict):
        raise invalid("the filter must be an object")
    if "blockHash" in wanted:
        if "fromBlock" in wanted or "toBlock" in wanted:
            raise invalid("a filter has either blockHash or a range")
        first = last = number_of({"blockHash": wanted["blockHash"]})
    else:
        first = number_of(wanted.get("fromBlock") or "latest")
        last = min(number_of(wanted.get("toBlock") or "latest"), head)
        if first > last:
            if first > head:
                return []
            raise rejected("invalid block range params")
    addresses = _alternatives(wanted.get("address"), 20)
    given = wanted.get("topics") or []
    if not isinstance(given, list) or len(given) > 4:
        raise invalid("topics must be a list of at most four")
    topics = [_alternatives(topic, 32) for topic in given]
    found = store.logs(first, last, addresses, topics, MOST_LOGS + 1)
    if len(found) > MOST_LOGS:
        raise RpcError(LIMIT_EXCEEDED, f"query returned more than {MOST_LOGS} results")
    return [log_view(entry) for entry in found]


def _alternatives(value: Any, size: int) -> list[bytes]:
    """One value or several that are as good; none allows any."""
    several = value if isinstance(value, list) else [] if value is None else [value]
    if len(several) > MOST_ALTERNATIVES:
        raise invalid(f"at most {MOST_ALTERNATIVES} alternatives")
    return [data(item, "filter", size) for item in several]
