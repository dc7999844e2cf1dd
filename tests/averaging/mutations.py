"""Each rule of secure aggregation that must never be broken, as a way to break it.

A mutation takes one rule out of the code while its context lasts. `test_rules` shows that the rule's own scenario,
and no other, then fails: so the scenarios really watch what they claim to watch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from averaging import collecting, convening, dealing, keys, masking, reducing
from averaging.bulk import BulkKind, Chunk
from averaging.checking import Checking
from averaging.cohort import Cohort
from averaging.guard import SqliteGuard
from averaging.sums import Sums
from averaging.survivors import Certified, SurvivorCertificate, bits


@contextmanager
def _patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for target, name, value in changes:
            stack.enter_context(patch.object(target, name, value))
        yield


def survivors_per_reducer() -> AbstractContextManager[None]:
    """Every reducer goes by what itself received, not by the one certified set."""
    step = Cohort._step_certify

    def own_view(self: Cohort) -> Any:
        common = self.r3.certified

        def mine() -> Certified | None:
            found = common()
            receipt = self.r3.receipts.get(self.me)
            if found is None or receipt is None:
                return found
            return replace(found, survivors=bits(receipt[0].complete))

        with patch.object(self.r3, "certified", mine):
            return step(self)

    return _patched((Cohort, "_step_certify", own_view))


def forgotten_releases() -> AbstractContextManager[None]:
    """The guard does not remember which seed's shares left."""
    return _patched((SqliteGuard, "release", lambda self, sid, choices: None))


def forgotten_votes() -> AbstractContextManager[None]:
    """The guard does not remember which survivor set was signed."""
    return _patched((SqliteGuard, "vote", lambda self, sid, digest: None))


def votes_after_opening() -> AbstractContextManager[None]:
    """Whoever released shares votes on in the round's next attempt."""
    return _patched((SqliteGuard, "has_opened", lambda self, run, round_: None))


def second_opening() -> AbstractContextManager[None]:
    """A second sid of one round may be opened."""

    def reopen(self: SqliteGuard, run: bytes, round_: int, sid: bytes) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO opened (run, round, sid) VALUES (?, ?, ?)", (run, round_, sid))

    return _patched((SqliteGuard, "open_round", reopen))


def unchecked_seeds() -> AbstractContextManager[None]:
    """Reconstructed seeds are not compared with what their dealer published."""
    names = ("check_mask_seed", "check_self_seed", "check_audit_seed")
    return _patched(*((dealing, name, lambda seed, public: True) for name in names))


def unchecked_shares() -> AbstractContextManager[None]:
    """Returned shares are not compared with the dealer's hashes."""
    return _patched((dealing.Dealing, "is_share", lambda self, seed, dealer, holder, share: True))


def fresh_resend() -> AbstractContextManager[None]:
    """What is resent to a stand-in is not what was sent to the reducer (here: another chunk under the same masks)."""
    honest, shown = Cohort.payload, set()

    def payload(self: Cohort, kind: BulkKind, chunk: int) -> Chunk:
        frame = honest(self, kind, chunk)
        again = (id(self), chunk) in shown
        shown.add((id(self), chunk))
        if kind is BulkKind.SUM or not again:
            return frame
        words = np.frombuffer(frame.data, self.layout.dtype(chunk)) + np.array(1, self.layout.dtype(chunk))
        return replace(frame, data=words.tobytes())

    return _patched((Cohort, "payload", payload))


def no_minimum() -> AbstractContextManager[None]:
    """Rosters of any size are taken."""
    honest = convening.check_roster

    def lax(seating: Any, params: Any, *rest: Any) -> Any:
        return honest(seating, replace(params, minimum=1), *rest)

    return _patched((convening, "check_roster", lax))


def no_threshold() -> AbstractContextManager[None]:
    """A survivor set of any size is proposed, voted for and certified, by any number of votes."""
    honest = SurvivorCertificate.__init__

    def lax(self: SurvivorCertificate, run: bytes, roster: Any, threshold: int) -> None:
        honest(self, run, roster, 1)

    return _patched((SurvivorCertificate, "__init__", lax))


def no_masks() -> AbstractContextManager[None]:
    """Updates are uploaded in the clear."""
    return _patched((masking.Masker, "apply", lambda self, chunk, ring: None))


def one_counter() -> AbstractContextManager[None]:
    """Every chunk's keystream starts at the same counter."""
    return _patched((masking, "keystream_iv", lambda chunk: bytes(16)))


def old_keys() -> AbstractContextManager[None]:
    """Pair keys depend on who the two are and not on the attempt."""

    def pair(private: bytes, public: bytes, sid: bytes, i: int, j: int) -> bytes:
        return keys.hkdf(bytes([min(i, j), max(i, j)]), b"", b"pair", keys.MASK_KEY_BYTES)

    return _patched((collecting, "pair_key", pair), (reducing, "pair_key", pair))


def early_audit() -> AbstractContextManager[None]:
    """The audit seed is opened while sums are not signed yet."""
    return _patched((Sums, "all_signed", property(lambda self: True)))


def anybodys_sums() -> AbstractContextManager[None]:
    """A sum is taken from whoever signs it, and not from its reducer or who stands in for it."""
    return _patched((Cohort, "_counts", lambda self, author, chunk: True))


def no_audits() -> AbstractContextManager[None]:
    """Sums count without their auditors' word, and whatever these find."""
    return _patched(
        (Checking, "audited", property(lambda self: self.sums.complete)), (Checking, "_report", lambda self: [])
    )
