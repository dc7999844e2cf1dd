"""`run-peer init` writes files that the other commands read, and overwrites nothing."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from dht.errors import ConfigError, StorageError
from dht.identity import Identity
from peer.cli import parse
from peer.config import PeerConfig
from peer.init import create, next_steps, settings_text
from peer.manifest import Manifest


def test_the_manifest_names_this_peer_as_founder(tmp_path: Path) -> None:
    identity = create(tmp_path / "new", tmp_path / "data", name="my-run", peers=4)
    manifest = Manifest.load(tmp_path / "new" / "run.toml")
    assert manifest.founder == identity.peer_id == Identity.load(tmp_path / "data" / "identity.key").peer_id
    assert (manifest.run.name, manifest.run.genesis_peers) == ("my-run", 4)


def test_the_settings_lead_a_peer_to_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(tmp_path / "new", tmp_path / "data", name="my-run", peers=4)
    monkeypatch.chdir(tmp_path)
    _, bound = parse(["--config", "new/peer.toml"])
    (config,) = bound.args
    assert config == replace(
        PeerConfig(), run=Path("new/run.toml"), data_dir=tmp_path / "data", config=Path("new/peer.toml")
    )


def test_every_setting_is_shown_with_its_meaning_and_a_value_that_loads() -> None:
    text = settings_text({})
    lines = text.splitlines()
    for field in fields(PeerConfig):
        if field.name == "config":
            continue
        (index,) = [number for number, line in enumerate(lines) if line.startswith(f"# {field.name} = ")]
        assert len(lines[index - 1]) > 10 and lines[index - 1].startswith("# ")
        assert tomllib.loads(lines[index].removeprefix("# "))
    assert tomllib.loads(text) == {}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    identity = create(tmp_path, tmp_path, name="my-run", peers=4)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"run\.toml exists"):
        create(tmp_path, tmp_path, name="other", peers=4)
    (tmp_path / "run.toml").unlink()
    with pytest.raises(ConfigError, match=r"peer\.toml exists"):
        create(tmp_path, tmp_path, name="other", peers=4)
    for path, content in before.items():
        assert not path.exists() or path.read_bytes() == content
    # The identity is the one thing that a second init of another folder shares.
    assert create(tmp_path / "second", tmp_path, name="other", peers=4).peer_id == identity.peer_id


@pytest.mark.parametrize(("name", "peers"), [("Not a name", 4), ("fine", 2)])
def test_a_bad_run_leaves_no_files(tmp_path: Path, name: str, peers: int) -> None:
    with pytest.raises(ConfigError):
        create(tmp_path / "new", tmp_path / "data", name=name, peers=peers)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        create(tmp_path / "file" / "new", tmp_path / "data", name="fine", peers=4)


def test_the_next_step_is_said(tmp_path: Path) -> None:
    text = next_steps(Path("here"), tmp_path, Identity.generate())
    assert "run-bootstrap" in text and "cd here && run-peer" in text


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    if path.name == "peer.toml":
        _, bound = parse(["--config", str(path)])
        (config,) = bound.args
        assert config.run.exists() and Path(config.data).exists() and config.metrics_port == 9464
    else:
        assert Manifest.load(path).run.name == path.stem
