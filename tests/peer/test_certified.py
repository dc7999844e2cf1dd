"""What `run-peer export` reads: the newest state that the run's own chain certifies, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from averaging.chain import Chain
from averaging.record import found
from dht.errors import StorageError
from dht.identity import Identity
from peer.certified import newest, schema_of
from peer.cli import main
from peer.history import chain_frames
from peer.manifest import Manifest, Model
from peer.model import ParameterVector, build_model
from peer.node import state_folder
from peer.state import CanonicalState
from peer.status import StatusReporter
from peer.store import StateStore

FOUNDER = Identity(bytes([7] * 32))
TINY = {"model_type": "llama", "vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 2, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 256}
MANIFEST = Manifest.demo(str(FOUNDER.peer_id), model=Model(config=TINY, seed=1))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder in which a run was founded, as a peer leaves it."""
    schema = schema_of(MANIFEST)
    state = CanonicalState.genesis(schema, ParameterVector(build_model(MANIFEST)).view(), 1.0)
    members = (FOUNDER.peer_id,)
    envelope = found(FOUNDER, MANIFEST.run_id, members, state.root(), bytes(32))
    frames = chain_frames(Chain(MANIFEST.run_id, FOUNDER.peer_id, envelope), 0)
    store = StateStore(state_folder(tmp_path, MANIFEST), schema)
    store.save(0, state.root(), state.leaves(), state.chunks(), frames)
    (tmp_path / "run.toml").write_text(MANIFEST.dumps())
    return tmp_path


def test_the_certified_state_is_found_with_its_facts(data_dir: Path) -> None:
    state, facts = newest(data_dir, MANIFEST)
    assert (facts.round, facts.root) == (0, state.root())


def test_the_held_out_loss_is_that_of_this_very_state(data_dir: Path) -> None:
    root = newest(data_dir, MANIFEST)[1].root
    status = StatusReporter(data_dir / "status.json")
    for measured, loss, found_loss in ((root, 2.5, 2.5), (bytes(32), 2.5, None), (root, None, None)):
        status.event("round", round=0, void=False, root=measured.hex(), heldout_loss=loss)
        assert newest(data_dir, MANIFEST)[1].heldout_loss == found_loss


def test_a_state_that_no_chain_of_this_founder_certifies_is_refused(data_dir: Path) -> None:
    other = Identity(bytes([8] * 32))
    state = CanonicalState.genesis(schema_of(MANIFEST), ParameterVector(build_model(MANIFEST)).view(), 2.0)
    envelope = found(other, MANIFEST.run_id, (other.peer_id,), state.root(), bytes(32))
    frames = chain_frames(Chain(MANIFEST.run_id, other.peer_id, envelope), 0)
    store = StateStore(state_folder(data_dir, MANIFEST), schema_of(MANIFEST))
    store.save(1, state.root(), state.leaves(), state.chunks(), frames)
    # The forged round 1 is passed over for the genuine round 0.
    assert newest(data_dir, MANIFEST)[1].round == 0


def test_a_folder_of_another_run_or_of_none_says_so(data_dir: Path, tmp_path: Path) -> None:
    other = Manifest.demo(str(FOUNDER.peer_id), name="other", model=Model(config=TINY, seed=1))
    with pytest.raises(StorageError, match="no peer has trained"):
        newest(data_dir, other)
    state_folder(tmp_path, other).mkdir(parents=True)
    with pytest.raises(StorageError, match="no certified state"):
        newest(tmp_path, other)


def test_export_writes_a_model_that_transformers_loads(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    folder = data_dir / "model"
    with pytest.raises(SystemExit) as end:
        main(["export", str(folder), "--run", str(data_dir / "run.toml"), "--data-dir", str(data_dir)])
    assert end.value.code == 0 and "round 0" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.num_parameters() == build_model(MANIFEST).num_parameters()
