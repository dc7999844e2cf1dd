"""What is a peer's own trains, stays, outlives restarts and catch-up, is exported, and serves the peer's own text."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dht.errors import ConfigError
from peer.data import TokenBatches, TokenData
from peer.learner import Learner
from peer.manifest import Manifest, Personal
from peer.model import build_model
from peer.personal import personal_names, stored
from peer.trainer import Trainer
from tests.peer.finetune_models import LORA, save_base, tuned
from tests.peer.learner_table import Table, fetch
from tests.peer.swarm_in_process import BATCH, SEQUENCE

HEAD = Personal(patterns=("lm_head.*",))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def with_head(base: Path, personal: Personal = HEAD) -> Manifest:
    manifest = tuned(base, personal=personal)
    return manifest.replace(adapter=type(manifest.adapter)())


def own(learner: Learner) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in learner._trainer.personal.arrays().items()}


def test_names_are_chosen_among_what_is_trained(base):
    whole = build_model(with_head(base))
    assert personal_names(whole, with_head(base)) == {"lm_head.weight"}
    last = personal_names(whole, with_head(base, Personal(patterns=("*.layers.1.mlp.*", "lm_head.weight"))))
    assert last == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("up", "gate", "down")} | {"lm_head.weight"}
    both = tuned(base, personal=Personal(adapter=True))
    model = build_model(both)
    names = personal_names(model, both)
    assert len(names) == 8 and all(".lora_" in name for name in names)
    trainer = Trainer(model, TokenBatches(TokenData(np.zeros(64, np.uint8), 16, "x"), 1, 0), both, "cpu")
    assert "model.layers.0.self_attn.q_proj.weight" in trainer.vector.names  # below its adapter, by its own name
    assert not names & set(trainer.vector.names)


@pytest.mark.parametrize(
    ("personal", "says"),
    [
        (Personal(patterns=("lm_haed.*",)), "'lm_haed.*' matches no trained parameter"),
        (Personal(patterns=("*",)), "nothing is left"),
    ],
)
def test_patterns_that_cannot_be_meant(base, personal, says):
    manifest = with_head(base, personal)
    with pytest.raises(ConfigError, match=says.replace("*", r"\*")):
        personal_names(build_model(manifest), manifest)


@pytest.mark.parametrize("kind", ["head", "adapter"])
async def test_neither_root_nor_upload_know_them(base, tmp_path, kind):
    manifest = with_head(base) if kind == "head" else tuned(base, LORA, Personal(adapter=True))
    table, changed = Table(tmp_path / "a", manifest=manifest), Table(tmp_path / "b", manifest=manifest)
    assert len(table.learners[0]._trainer.personal) > 0
    for each in (table, changed):  # the same sums everywhere: rounding is by chance else
        for learner in each.learners:
            learner._make_sent = _steady(learner._make_sent)
    before = own(table.learners[0])
    views = await table.upload()
    assert any((before[name] != value).any() for name, value in own(table.learners[0]).items()), "nothing was trained"
    # The same learners, with other personal parameters after training: not one byte of what leaves them differs.
    again = await changed.upload()
    for each, those in ((table, views), (changed, again)):
        each.rings.clear()
        for learner, view in zip(each.learners, those, strict=True):
            learner._unfold()
            if each is changed:
                for array in learner._trainer.personal.arrays().values():
                    array[...] = 1e6
            learner._fold()
            each.rings.append({c: learner.encode(view, c).copy() for c in range(each.layout.total_chunks)})
    for mine, theirs in zip(table.rings, changed.rings, strict=True):
        for chunk in range(table.layout.chunks):
            np.testing.assert_array_equal(mine[chunk], theirs[chunk])
    table.add_up(views, [0, 1, 2])
    changed.add_up(again, [0, 1, 2])
    assert await table.learners[0].apply(views[0].aggregate) == await changed.learners[0].apply(again[0].aggregate)
    assert table.learners[0].state.schema.elements + len(table.learners[0]._trainer.personal) == sum(
        entry.numel() for entry in table.learners[0]._trainer.model.parameters() if entry.requires_grad
    )


def _steady(make):
    return lambda number, sid, members, weight, dither, update: make(number, sid, members, weight, bytes(16), update)


async def test_they_survive_a_restart_and_the_loss_of_everything_but_the_last_save(base, tmp_path):
    table = Table(tmp_path, manifest=with_head(base))
    await table.round()
    await table.round()
    known = own(table.learners[0])
    assert (known["personal/lm_head.weight"] != own(table.learners[1])["personal/lm_head.weight"]).any()
    again = table.make(0)
    np.testing.assert_array_equal(own(again)["personal/lm_head.weight"], known["personal/lm_head.weight"])
    moments = again._trainer.state().arrays["optimizer/exp_avg/lm_head.weight"]
    assert moments.any()
    # Killed between a newer certified state and its own save: what was saved is of another round, and still counts.
    shutil.rmtree(tmp_path / "0" / "rounds")
    (tmp_path / "0" / "rounds").mkdir()
    fresh = table.make(0)
    assert fresh.round == 0
    np.testing.assert_array_equal(own(fresh)["personal/lm_head.weight"], known["personal/lm_head.weight"])


async def test_who_catches_up_keeps_them(base, tmp_path):
    table = Table(tmp_path, manifest=with_head(base))
    late = table.learners[0]
    views = await table.upload()
    known = own(late)
    table.add_up(views, [1, 2])
    root = (await table.learners[1].apply(views[1].aggregate))[0]
    record = table.certify(views, [1, 2], root)
    await table.learners[1].commit(record, table.chain)
    assert await fetch(late, table.learners[1], record, table.chain)
    assert late.state.root() == root
    np.testing.assert_array_equal(own(late)["personal/lm_head.weight"], known["personal/lm_head.weight"])
    kept = stored(late.store)["personal/lm_head.weight"]
    np.testing.assert_array_equal(kept, known["personal/lm_head.weight"])


async def test_a_head_of_its_own_serves_a_peer_better_than_the_common_one(base, tmp_path):
    """Three peers whose texts follow one another's letters in three different ways: no common head can fit them all."""
    losses = {}
    for name, manifest in (("common", with_head(base, Personal())), ("personal", with_head(base))):
        manifest = manifest.replace(outer=type(manifest.outer)(learning_rate=1.0, momentum=0.0))
        table = Table(tmp_path / name, manifest=manifest)
        texts = [_text(step) for step in (1, 3, 7)]
        for learner, tokens in zip(table.learners, texts, strict=True):
            learner._trainer.batches = TokenBatches(TokenData(tokens[: -8 * SEQUENCE], SEQUENCE, "skewed"), BATCH, 0)
            learner._make_sent = _steady(learner._make_sent)
        for _ in range(8):
            await table.round()
        heldout = [TokenData(tokens[-8 * SEQUENCE :], SEQUENCE, "own") for tokens in texts]
        losses[name] = [
            learner._trainer.evaluate(data.evaluation(8)) for learner, data in zip(table.learners, heldout, strict=True)
        ]
    for mine, everybodys in zip(losses["personal"], losses["common"], strict=True):
        assert mine < everybodys - 0.05, losses


def _text(step: int) -> np.ndarray:
    """Letters of which each is followed by the one `step` places on, but one in five by any."""
    chance = np.random.default_rng(step)
    steps = np.where(chance.random(48 * SEQUENCE) < 0.2, chance.integers(23, size=48 * SEQUENCE), step)
    return (97 + np.cumsum(steps) % 23).astype(np.uint8)


async def test_what_is_not_a_number_is_neither_kept_nor_saved(base, tmp_path):
    table = Table(tmp_path, manifest=with_head(base))
    await table.round()
    learner = table.learners[0]
    good = own(learner)["personal/lm_head.weight"]
    learner._trainer.personal.arrays()["personal/lm_head.weight"][3, 4] = np.nan
    assert not learner._trainer.is_finite()
    learner.save_local()
    np.testing.assert_array_equal(stored(learner.store)["personal/lm_head.weight"], good)
    learner._trainer.personal.arrays()["personal/lm_head.weight"][3, 4] = np.inf
    learner._trainer.start_over(learner.state.parameters)
    assert learner._trainer.is_finite()
    np.testing.assert_array_equal(own(learner)["personal/lm_head.weight"], good)


def test_values_of_another_model_are_refused(base):
    manifest = with_head(base)
    batches = TokenBatches(TokenData(np.zeros(64, np.uint8), 16, "x"), 1, 0)
    trainer = Trainer(build_model(manifest), batches, manifest, "cpu")
    for wrong in ({}, {"personal/lm_head.weight": np.zeros((2, 2), np.float32)}):
        with pytest.raises(ConfigError, match="do not fit"):
            trainer.personal.restore(wrong)
    with torch.no_grad():
        trainer.personal.restore({"personal/lm_head.weight": np.ones((257, 32), np.float32)})
    assert (trainer.model.lm_head.weight == 1).all()
