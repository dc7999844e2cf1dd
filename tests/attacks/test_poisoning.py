"""Uploads that are not what an honest member would upload: wrong masks, values out of range, any numbers at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from averaging.encoding import Decoder, Encoder, NonFiniteUpdateError, squared_norm
from averaging.keys import self_key
from averaging.layout import BLOCK, Layout
from averaging.masking import Masker
from averaging.scales import LARGEST_SCALE, levels
from averaging.work import ParticipantAction, Upload
from dht.errors import Refusal
from tests.attacks.evil import EvilPeer, Plot, started
from tests.peer.swarm_in_process import Swarm as Peers
from tests.peer.swarm_in_process import until


class WrongMasks(Plot):
    """Masks with a self mask, or a pair mask, that is not the one it shared."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which

    def act(self, evil: EvilPeer, action: ParticipantAction) -> Iterable[ParticipantAction]:
        cohort = evil.in_cohort
        if isinstance(action, Upload) and cohort is not None:
            self.told["masked"] += 1
            keys = list(cohort._masker._keys)
            place = 0 if self.which == "self" else 3
            keys[place] = (self_key(bytes(31), cohort.sid), keys[place][1])
            cohort._masker = Masker(cohort.sid, cohort.me, keys[0][0], {})
            cohort._masker._keys = keys
        return (action,)


@pytest.mark.parametrize("which", ["self", "pair"])
def test_masks_that_do_not_cancel_void_the_round_and_change_no_model(which: str) -> None:
    """The manifest binds the wrong bytes, so nobody's signature lies; but the sum is out of range, and nobody takes it.

    Who did it, nobody can tell. The update of everybody is kept for the next round.
    """
    arena = started()
    plot = arena.corrupt(WrongMasks(which), arena.order[4])
    before = {peer: dict(arena.peers[peer].states) for peer in arena.honest}
    assert arena.run(lambda: arena.reached(2, arena.honest), 200)
    assert plot.told["masked"] == 1
    (record,) = arena.records[2].values()
    assert record.void
    assert all(max(arena.peers[peer].states.values()) in before[peer].values() for peer in arena.honest)
    assert any("not one of honest updates" in note for note in arena.notes)
    assert all(refused.refusal is Refusal.STALE for refused in arena.refused)
    arena.plots.clear()
    arena.goes_on(2)


def test_among_several_cohorts_the_one_whose_masks_do_not_cancel_is_left_out() -> None:
    """Its trailer shows it, and is not signed; the others' sum stands, and all twelve end on it."""
    arena = started(12, target=4)
    liar = arena.order[5]
    plot = arena.corrupt(WrongMasks("self"), liar)
    arena.goes_on(2)
    assert plot.told["masked"] > 0
    chosen = [record for r in (2, 3) for record in arena.records[r].values() if not record.void]
    assert chosen and any(len(record.survivors) == 8 for record in chosen)
    assert not any(liar in record.members() for record in chosen if len(record.survivors) == 8)


class AnyNumbers(Plot):
    """Uploads numbers of its choice: a value beyond the clip where that stays below what all can reach, or beyond."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def encode(self, evil: EvilPeer, chunk: int, ring: Any) -> None:
        cohort, layout = evil.in_cohort, evil.params.layout
        if chunk == layout.trailer or cohort is None:
            return
        self.told["poisoned"] += 1
        value = int(self.factor * levels(layout, len(cohort.peers)))
        ring[:] = np.array(value).astype(ring.dtype)
        evil.arena.updates[cohort.sid, evil.peer_id][chunk] = np.full(ring.size, value)


class HalfTheClip(Plot):
    """Honest, with an update within half the clip: seven of them and 2.5 clips are less than eight can reach."""

    def encode(self, evil: EvilPeer, chunk: int, ring: Any) -> None:
        cohort = evil.in_cohort
        assert cohort is not None
        if chunk == evil.params.layout.trailer:
            return
        mine = evil.arena.updates[cohort.sid, evil.peer_id]
        mine[chunk] //= 2
        assert 2 * np.abs(mine[chunk]).max() <= levels(evil.params.layout, len(cohort.peers)) + 1
        ring[:] = mine[chunk].astype(ring.dtype)


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_values_beyond_the_clip_that_all_together_could_have_made_are_in_everybodys_model(factor: float) -> None:
    """A liar moves each coordinate by more than its share, and nothing shows it: see what is not protected.

    The oracle counts what the liar uploaded: the sum of that is exact, and everybody has it.
    """
    arena = started()
    arena.plots |= dict.fromkeys(arena.order, HalfTheClip())
    plot = arena.corrupt(AnyNumbers(factor), arena.order[4])
    arena.goes_on(1)
    assert plot.told["poisoned"] >= arena.params.layout.chunks
    (record,) = arena.records[2].values()
    assert not record.void and arena.order[4] in record.members() and len(record.survivors) == 8
    assert all(refused.refusal is Refusal.STALE for refused in arena.refused)


@pytest.mark.parametrize("factor", [7.9, -7.9])
def test_values_that_not_all_together_could_have_made_void_the_round(factor: float) -> None:
    arena = started()
    plot = arena.corrupt(AnyNumbers(factor), arena.order[4])
    assert arena.run(lambda: arena.reached(2, arena.honest), 200)
    assert plot.told["poisoned"] >= 5
    assert [record.void for record in arena.records[2].values()] == [True]
    arena.plots.clear()
    arena.goes_on(2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_an_update_that_is_not_finite_is_not_sent(bad: float) -> None:
    """On the wire there are ring words only, so this is about an honest member's own mistakes."""
    layout = Layout(2 * BLOCK, 16, BLOCK)
    update = np.zeros(layout.parameters, np.float32)
    update[5000] = bad
    with pytest.raises(NonFiniteUpdateError):
        squared_norm(update)
    encoder = Encoder(layout, 8, np.full(layout.blocks, 1e-3, np.float32), bytes(32))
    with pytest.raises(NonFiniteUpdateError):
        encoder.encode_chunk(1, update, 1.0, bytes(16), layout.zeros(1))


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("word", [0, 1, -1])
def test_no_ring_words_decode_to_what_is_not_finite(bits: int, word: int) -> None:
    """The largest, the smallest and random sums, at the largest clip and the smallest weight that there is."""
    layout = Layout(BLOCK, bits, BLOCK)
    decoder = Decoder(layout, 64, np.full(1, LARGEST_SCALE, np.float32), bytes(32))
    extreme = np.array(word * ((1 << bits - 1) - 1)).astype(layout.dtype(0))
    random = np.random.default_rng(1).integers(0, 1 << bits, BLOCK, np.uint64).astype(layout.dtype(0))
    ring = np.full(BLOCK, extreme) if word else random
    assert np.isfinite(decoder.decode_chunk(0, ring, 1 / (1 << 20))).all()


async def test_real_learners_give_a_poisoned_round_up_and_keep_their_updates(tmp_path: Path) -> None:
    """One of five adds noise over the whole ring in one round, under an honest trailer; the next one is whole."""
    async with Peers(5, tmp_path) as swarm:
        await swarm.reach(1)
        liar, poisoned = swarm.peers[4], set[bytes]()
        honest = liar.learner.encode

        def encode(cohort: Any, chunk: int) -> Any:
            ring = honest(cohort, chunk)
            if chunk < cohort.layout.chunks and not poisoned - {cohort.sid}:
                poisoned.add(cohort.sid)
                Masker(bytes(32), 0, b"k" * 16, {}).apply(chunk, ring)
            return ring

        liar.learner.encode = encode  # type: ignore[method-assign]
        chain = swarm.peers[0].participant.chain
        assert chain is not None

        await until(lambda: bool(poisoned) and chain.head.round >= 4, [peer.driver.failed for peer in swarm.peers])
        records = [chain.record(r) for r in range(1, chain.head.round + 1)]
        assert not any(record.sid in poisoned for record in records)
        assert any(record.void for record in records) and not records[-1].void
        notes = [fields["reason"] for peer in swarm.peers for fields in peer.events.named("waiting")]
        assert sum("not one of honest updates" in reason for reason in notes) == 5
