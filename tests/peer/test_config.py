"""Flags, environment and file are one dataclass with one precedence, and nothing unknown passes."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import pytest

from dht.errors import ConfigError
from dht.identity import Identity
from peer.cli import parse
from peer.config import PREFIX, PeerConfig, config_path, read_config

BOOTSTRAP = f"/ip4/127.0.0.1/tcp/4001/p2p/{Identity(bytes([1] * 32)).peer_id}"
OTHER = BOOTSTRAP.replace("127.0.0.1", "127.0.0.2")


def parsed(*argv: str, environ: dict[str, str] | None = None) -> PeerConfig:
    with patch.dict(os.environ, environ or {}):
        _, bound = parse(argv)
    config = bound.args[0] if bound.args else PeerConfig()
    assert isinstance(config, PeerConfig)
    return config


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_when_nothing_is_given() -> None:
    assert parsed() == PeerConfig()


def test_flag_beats_variable_beats_file_beats_default() -> None:
    Path("peer.toml").write_text("batch_size = 3\nthreads = 3\nseed = 3\n")
    environ = {"MURMURATION_BATCH_SIZE": "2", "MURMURATION_THREADS": "2"}
    config = parsed("--batch-size", "1", environ=environ)
    assert (config.batch_size, config.threads, config.seed, config.rounds) == (1, 2, 3, PeerConfig().rounds)


@pytest.mark.parametrize("name", [field.name for field in fields(PeerConfig) if field.name != "config"])
def test_every_field_is_a_flag_a_variable_and_a_key(name: str) -> None:
    values: dict[str, tuple[str, str, object]] = {
        "bool": ("true", "true", True),
        "int": ("7", "7", 7),
        "float": ("7.5", "7.5", 7.5),
        "str": ("x", '"x"', "x"),
        "tuple": (BOOTSTRAP, f'["{BOOTSTRAP}"]', (BOOTSTRAP,)),
        "path": ("/tmp/f", '"/tmp/f"', Path("/tmp/f")),
    }
    special = {"device": "cpu", "precision": "fp32", "log_format": "json", "metrics_port": "7"}
    special |= {"dp_delta": "0.05"}
    default = getattr(PeerConfig(), name)
    kind = (
        "path"
        if name in ("run", "data_dir", "log_file", "ledger", "wallet", "wallet_password_file")
        else type(default).__name__
    )
    flag_text, toml_text, value = values[kind]
    if name in special and kind == "str":
        flag_text, toml_text, value = special[name], f'"{special[name]}"', special[name]
    elif name in special and kind == "float":
        flag_text, toml_text, value = special[name], special[name], float(special[name])
    flag = "--" + name.replace("_", "-")
    by_flag = parsed(flag) if kind == "bool" else parsed(flag, flag_text)
    by_variable = parsed(environ={PREFIX + name.upper(): flag_text})
    Path("peer.toml").write_text(f"{name} = {toml_text}\n")
    by_file = parsed()
    assert getattr(by_flag, name) == getattr(by_variable, name) == getattr(by_file, name) == value != default


def test_repeated_flags_add_up() -> None:
    assert parsed("--bootstrap", BOOTSTRAP, "--bootstrap", OTHER).bootstrap == (BOOTSTRAP, OTHER)


def test_config_flag_names_the_file_and_it_must_exist(tmp_path: Path) -> None:
    Path("other.toml").write_text("seed = 9\n")
    assert parsed("--config", "other.toml").seed == 9
    assert parsed("--config=other.toml").seed == 9
    assert parsed(environ={"MURMURATION_CONFIG": "other.toml"}).seed == 9
    with pytest.raises(ConfigError, match=r"cannot read gone\.toml"):
        parsed("--config", "gone.toml")
    assert config_path([]) is None


def test_paths_in_the_file_are_relative_to_the_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "text.txt").write_text("text")
    (home / "peer.toml").write_text('run = "run.toml"\ndata_dir = "data"\ndata = "text.txt"\n')
    values = read_config(home / "peer.toml")
    assert values == {"run": str(home / "run.toml"), "data_dir": str(home / "data"), "data": str(home / "text.txt")}
    (home / "saved").mkdir()
    (home / "odd@name").mkdir()
    for data, path in (("saved@validation", home / "saved@validation"), ("odd@name", home / "odd@name")):
        (home / "peer.toml").write_text(f'data = "{data}"\n')
        assert read_config(home / "peer.toml") == {"data": str(path)}
    (home / "peer.toml").write_text('data = "some/dataset"\n')
    assert read_config(home / "peer.toml") == {"data": "some/dataset"}


@pytest.mark.parametrize(
    ("argv", "environ", "file", "suggestion"),
    [
        (["--bootsrap", "x"], {}, "", "Did you mean --bootstrap?"),
        ([], {"MURMURATION_BOTSTRAP": "x"}, "", "Did you mean MURMURATION_BOOTSTRAP?"),
        ([], {}, "batchsize = 3\n", "Did you mean batch_size?"),
        (["--device", "cup"], {}, "", 'Did you mean "cpu"?'),
        (["ini"], {}, "", "ini"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(
    argv: list[str], environ: dict[str, str], file: str, suggestion: str
) -> None:
    if file:
        Path("peer.toml").write_text(file)
    with pytest.raises(ConfigError) as caught:
        parsed(*argv, environ=environ)
    assert suggestion in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["--batch-size", "-1"],
        ["--batch-size", "many"],
        ["--threads", "-1"],
        ["--rounds", "-1"],
        ["--join-timeout", "-1"],
        ["--join-timeout", "nan"],
        ["--metrics-port", "65536"],
        ["--seed", "-1"],
        ["--listen", "0.0.0.0:4001"],
        ["--announce", "example.org"],
        ["--bootstrap", "/ip4/127.0.0.1/tcp/4001"],
    ],
)
def test_values_that_make_no_sense_are_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError):
        parsed(*argv)


def test_a_file_that_is_not_toml_is_refused_by_name() -> None:
    Path("peer.toml").write_text("batch_size = \n")
    with pytest.raises(ConfigError, match=r"peer\.toml is not valid TOML"):
        parsed()


def test_places_follow_from_the_data_folder(tmp_path: Path) -> None:
    config = PeerConfig(data_dir=tmp_path)
    assert config.identity_path == tmp_path / "identity.key"
    assert config.status_path == tmp_path / "status.json"
    assert config.log_path == tmp_path / "peer.log"
    assert PeerConfig(data_dir=tmp_path, log_file=Path("x")).log_path == Path("x")
