"""Pure functions computed once for all simulated peers, so that many of them fit on one core.

In a network every peer checks the same bytes for itself; in one process the answer is the same each time. Nothing here
changes an answer. `memoised` calls the real function once per arguments, all of them. `cheap` goes further, for a
thousand peers that are all honest: keys are what the arguments follow from, and two shortcuts rest on laws that have
tests of their own: what was encoded decodes to the value it came from, and what a peer signed verifies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, Generic, TypeVar
from unittest.mock import patch

import dht.envelope
import dht.identity
import dht.wire
from averaging import aggregate, chain, dealing, inclusion, keys, roster, shamir, survivors, tally
from dht.identity import Identity

_KEPT = 1 << 16
_OURS = ("averaging", "dht", "tests")
Value = TypeVar("Value")


class Memory(Generic[Value]):
    """The newest `kept` values by key; the older half goes when it is full."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._values: dict[Hashable, Value] = {}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made at the first time."""
        found = self._values.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found

    def put(self, key: Hashable, value: Value) -> None:
        """Remember a value."""
        if len(self._values) >= self._kept:
            for old in list(islice(self._values, self._kept // 2)):
                del self._values[old]
        self._values[key] = value

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values


def _once(function: Callable[..., Any], key: Callable[..., Hashable], kept: int = _KEPT) -> Callable[..., Any]:
    """`function`, called once per key of its arguments. None is no answer."""
    memory: Memory[Any] = Memory(kept)

    def twin(*arguments: Any) -> Any:
        # With the answer go the arguments: an identity that is part of a key must not be used again.
        return memory.get(key(*arguments), lambda: (function(*arguments), arguments))[0]

    return twin


def _exact() -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    def both(private: bytes, theirs: bytes) -> Hashable:
        return frozenset((public(private), theirs))  # both ends come to the same secret

    once = lru_cache(_KEPT)
    yield keys._private_key, once(keys._private_key)
    public = once(keys.public_key)
    yield keys.public_key, public
    yield keys.shared_secret, _once(keys.shared_secret, both)
    yield keys.hkdf, once(keys.hkdf)
    yield shamir.combine, _once(shamir.combine, lambda shares, threshold=1: (threshold, *sorted(shares.items())))
    yield dht.envelope.signed_digest, once(dht.envelope.signed_digest)
    yield dealing.share_digest, once(dealing.share_digest)
    yield survivors.name_of, once(survivors.name_of)
    yield dht.wire.encode, once(dht.wire.encode)
    decode = once(dht.wire.decode)
    yield dht.wire.decode, lambda frame: decode(bytes(frame))


def _lawful() -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    values: Memory[Any] = Memory()
    signed: Memory[bool] = Memory()
    encode, decode = dht.wire.encode, dht.wire.decode
    sign, verify = dht.identity.Identity.sign, dht.identity._verify

    def encode_once(value: Any) -> bytes:
        frame = encode(value)
        if frame not in values:
            values.put(frame, value)
        return frame

    def remembered(self: Identity, digest: bytes) -> bytes:
        signature = sign(self, digest)
        signed.put((bytes(self.peer_id), digest, signature), True)
        return signature

    def verified(peer: bytes, digest: bytes, signature: bytes) -> bool:
        return (peer, digest, signature) in signed or verify(peer, digest, signature)

    yield encode, encode_once
    yield decode, lambda frame: values.get(bytes(frame), lambda: decode(frame))
    yield verify, verified
    yield sign, remembered


def _rosters() -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    yield roster.open_roster, _once(roster.open_roster, lambda frame, params, round_, head, committee: (frame, head), 8)
    yield (
        inclusion.check_included,
        _checked(inclusion.check_included, lambda message, seats, *rest: (message, seats.round_sid)),
    )
    yield (
        inclusion.check_inclusion,
        _checked(inclusion.check_inclusion, lambda message, seats, *rest: (message, seats.round_sid)),
    )
    yield (
        aggregate.survivors_of,
        _once(aggregate.survivors_of, lambda seats, duties, results: (seats.round_sid, tuple(results)), 8),
    )
    yield (
        aggregate.record_of,
        _once(
            aggregate.record_of,
            lambda sums, tip, root, loss: (sums.root, sums.roster, sums.lost, tip.head.hash(), root, loss),
            8,
        ),
    )


def _checked(function: Callable[..., Any], key: Callable[..., Hashable]) -> Callable[..., Any]:
    return _once(function, key, 64)


@contextmanager
def memoised() -> Iterator[None]:
    """Within this block pure functions of codec, digests, keys and shares are computed once for the same arguments."""
    with ExitStack() as stack:
        for function, twin in _exact():
            _replace(stack, function, twin)
        yield


@contextmanager
def cheap() -> Iterator[None]:
    """As `memoised`, and what honest peers conclude from the same roster, sums or record is computed once for all."""
    with memoised(), ExitStack() as stack:
        for function, twin in (*_lawful(), *_rosters()):
            _replace(stack, function, twin)
        advance, apply = chain.Tip.advance, tally.Tally.apply
        tips = _once(advance, lambda tip, record, certificate: (id(tip), record.hash()), 256)

        def advanced(tip: chain.Tip, record: Any, certificate: Any) -> Any:
            if record.recovery:
                return advance(tip, record, certificate)
            chain.certificates.verify(certificate, record, tip.committee(), tip.head.run)
            return tips(tip, record, certificate)

        stack.enter_context(patch.object(chain.Tip, "advance", advanced))
        applied = _once(apply, lambda before, record: (id(before), record.void, id(record.survivors)), 64)
        stack.enter_context(patch.object(tally.Tally, "apply", lambda before, record: applied(before, record)))
        yield


def _replace(stack: ExitStack, function: Callable[..., Any], twin: Callable[..., Any]) -> None:
    """Wherever one of our modules has `function`, under whatever name; `Identity` has one as a method."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] in _OURS and name != __name__]
    for place in (*modules, Identity):
        for attribute, value in list(vars(place).items()):
            if value is function:
                stack.enter_context(patch.object(place, attribute, twin))
