from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import ConfigError
from dht.identity import Identity
from peer.manifest import Cohort, LedgerChoice, Manifest, Model, Outer, Run, Train, Weights
from peer.run_params import run_params, weighing
from peer.strict_toml import annotated, parse

FOUNDER = str(Identity(b"\x01" * 32).peer_id)
DEMO = Manifest.demo(FOUNDER)
TEXT = DEMO.dumps()


def edited(key: str, value: str) -> str:
    """The demo's text with the first line that sets `key` changed."""
    text, count = re.subn(rf"(?m)^(# )?{key} = .*$", f"{key} = {value}", TEXT, count=1)
    assert count == 1
    return text


def test_text_and_values_are_one_thing():
    again = Manifest.loads(TEXT)
    assert again == DEMO
    assert again.run_id == DEMO.run_id
    assert again.dumps() == TEXT


def test_file_round_trip(tmp_path):
    (tmp_path / "run.toml").write_text(TEXT)
    assert Manifest.load(tmp_path / "run.toml") == DEMO
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        Manifest.load(tmp_path / "nothing.toml")


def test_every_key_has_a_comment():
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-z_]+ = ", line):
            assert lines[number - 1].startswith("# "), line


def test_run_id_ignores_comments_order_and_spelling():
    bare = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    head, *sections = re.split(r"(?m)^(?=\[)", bare)
    turned = []
    for part in reversed(sections):  # [cohort.deadlines] may come before [cohort], and keys in any order
        title, *keys = part.splitlines()
        turned += [title, *reversed(keys)]
    shuffled = "\n".join([head, *turned])
    assert shuffled != bare
    assert Manifest.loads(shuffled).run_id == DEMO.run_id
    assert Manifest.loads(edited("learning_rate", "3e-3")).run_id == DEMO.run_id
    assert Manifest.loads(edited("clip_norm", "1")).run_id == DEMO.run_id


def test_numbers_built_in_code_hash_like_their_text():
    built = DEMO.replace(outer=Outer(learning_rate=1, momentum=0))
    assert type(built.outer.learning_rate) is float
    assert built.run_id == Manifest.loads(built.dumps()).run_id


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", '"other"'),
        ("seed", "21"),
        ("local_steps", "11"),
        ("nesterov", "false"),
        ("join", "5.5"),
        ("betas", "[0.9, 0.95]"),
    ],
)
def test_every_value_counts(key, value):
    assert Manifest.loads(edited(key, value)).run_id != DEMO.run_id


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("target", "2", "cohort.target = 2 is too small"),
        ("target", "65", "cohort.target = 65 is too large"),
        ("target", "8.0", "cohort.target must be a whole number, not a number"),
        ("target", "true", "cohort.target must be a whole number, not true or false"),
        ("minimum", "9", "cohort.minimum = 9 is over cohort.target"),
        ("minimum", "7", "run.genesis_peers = 6 is under cohort.minimum"),
        ("learning_rate", '"fast"', "train.learning_rate must be a number, not a string"),
        ("learning_rate", "inf", "train.learning_rate must be a finite number"),
        ("betas", "[0.9]", "train.betas must be a list of 2"),
        ("betas", "[0.9, 1.5]", "train.betas = 1.5 is too large"),
        ("optimizer", '"adam"', 'train.optimizer = "adam" is not supported'),
        ("ring_bits", "12", "codec.ring_bits = 12 is not supported"),
        ("chunk_elements", "5000", "codec.chunk_elements = 5000 is not a multiple"),
        ("founder", '"me"', "run.founder = 'me' is not a peer id"),
        ("name", '"My Run"', "run.name"),
        ("version", "2", "run.version = 2 is not supported"),
        ("heldout", '"some"', "data.heldout"),
        ("heldout", '"hash:1"', "data.heldout"),
        ("heldout", '"split:"', "data.heldout"),
        ("path", '"there"', "exactly one of model.config, model.path, model.hub; found model.config and model.path"),
        ("config", "{ hidden_size = 3 }", "model.config.model_type is missing"),
        ("config", "{ model_type = 1979-05-27 }", "model.config.model_type holds date"),
        ("config", "3", "model.config must be a table, not a whole number"),
        ("kind", '"hub"', "tokenizer.source does not fit"),
        ("mode", '"closed"', "admission.mode"),
        ("aggregation", '"none"', "privacy.aggregation"),
    ],
)
def test_mistakes_are_named(key, value, says):
    with pytest.raises(ConfigError) as caught:
        Manifest.loads(edited(key, value))
    assert says in str(caught.value)


def test_a_misspelled_key_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown key cohort.targt .*did you mean cohort.target\?"):
        Manifest.loads(TEXT.replace("target = 8", "targt = 8"))
    with pytest.raises(ConfigError, match=r"unknown key cohort.deadlines.shears .*cohort.deadlines.shares"):
        Manifest.loads(TEXT.replace("shares = 10.0", "shears = 10.0"))
    with pytest.raises(ConfigError, match=r"unknown key outre .*did you mean outer\?"):
        Manifest.loads(TEXT.replace("[outer]", "[outre]"))
    with pytest.raises(ConfigError, match="known keys: learning_rate, momentum, nesterov"):
        Manifest.loads(TEXT.replace("nesterov = true", "zzz = true"))


def test_missing_keys_and_broken_files():
    with pytest.raises(ConfigError, match=r"run.name is missing"):
        Manifest.loads("")
    with pytest.raises(ConfigError, match="not TOML"):
        Manifest.loads("[run")
    with pytest.raises(ConfigError, match="must be a table"):
        Manifest.loads("run = 3")


def test_hub_sources_are_pinned():
    commit = "0" * 40
    hub = DEMO.replace(model=Model(hub="org/name", revision=commit))
    assert Manifest.loads(hub.dumps()) == hub
    for revision in ("", "main", commit[:7]):
        with pytest.raises(ConfigError, match=r"model\.revision"):
            DEMO.replace(model=Model(hub="org/name", revision=revision))
    with pytest.raises(ConfigError, match=r"model\.revision"):
        DEMO.replace(model=Model(path="folder", revision=commit))


def test_nested_model_config_survives():
    config = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}, "layers": ["a", "b\n\x7f\"'"]}
    manifest = DEMO.replace(model=Model(config=config))
    assert Manifest.loads(manifest.dumps()).run_id == manifest.run_id
    turned = DEMO.replace(model=Model(config=dict(reversed(config.items()))))
    assert turned.run_id == manifest.run_id


def test_first_clip():
    manifest = DEMO.replace(train=Train(tokens_per_round=1000, warmup=0, local_steps=5, learning_rate=0.1))
    assert manifest.first_clip == pytest.approx(4 * 0.1 * 5)
    slow = manifest.replace(train=dataclasses.replace(manifest.train, warmup=10))
    assert slow.first_clip == pytest.approx(4 * 0.1 * (0.1 + 0.2 + 0.3 + 0.4 + 0.5))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("domains = ['code', 'code']", "different names"),
        (f"domains = {[f'd{k}' for k in range(17)]}", "at most 16"),
        ("domains = ['Code']", "Code"),
        ("domains = [7]", r"weights\.domains must be a string"),
        ("domains = 'code'", r"weights\.domains must be a list$"),
        ("domains = ['code']\nimportance = 0.3", "multiple of 1/8"),
        ("importance = 0.5", r"needs weights\.domains"),
        ("domains = ['code']\nleast = 1", r"weights\.least"),
        ("by = 'loss'", r"weights\.by"),
    ],
)
def test_weights_that_make_no_sense_are_refused(text: str, match: str):
    with pytest.raises(ConfigError) as caught:
        Manifest.loads(
            f"[run]\nname = 'x'\nfounder = '{FOUNDER}'\n[model.config]\nmodel_type = 'llama'\n[weights]\n{text}"
        )
    assert re.search(match, caught.value.message)


def test_domains_are_numbered_from_one_and_others_are_refused():
    manifest = DEMO.replace(weights=Weights(domains=("code", "prose"), importance=0.5))
    assert Manifest.loads(manifest.dumps()).run_id == manifest.run_id != DEMO.run_id
    assert [manifest.domain(name) for name in ("", "code", "prose")] == [0, 1, 2]
    with pytest.raises(ConfigError, match="poems"):
        manifest.domain("poems")
    assert run_params(manifest, 5000).layout.domains == 2
    assert weighing(manifest).importance == 4


def test_founder_is_a_peer_id():
    assert str(DEMO.founder) == FOUNDER


@given(
    st.builds(
        Manifest.demo,
        st.just(FOUNDER),
        name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
        genesis_peers=st.integers(5, 100),
        train=st.builds(
            Train,
            learning_rate=st.floats(1e-9, 10),
            betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
            local_steps=st.integers(1, 1000),
        ),
        cohort=st.builds(Cohort, target=st.integers(5, 64)),
    )
)
def test_any_manifest_survives_its_text(manifest):
    again = Manifest.loads(manifest.dumps())
    assert again == manifest
    assert again.run_id == manifest.run_id


def test_parse_and_annotate_work_on_single_sections():
    run = parse(Run, {"name": "x", "founder": FOUNDER})
    assert run.genesis_peers == 5
    assert "# founder" not in annotated(DEMO, "t")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"chain_id": 1}, "belong together"),
        ({"hub": f"0x{'ab' * 20}"}, "belong together"),
        ({"chain_id": 1, "hub": f"0x{'AB' * 20}"}, "not an address in lower case"),
        ({"chain_id": 1, "hub": "0xab"}, "not an address in lower case"),
    ],
)
def test_a_ledger_is_named_whole_and_in_one_spelling(choice, said):
    with pytest.raises(ConfigError, match=said):
        DEMO.replace(ledger=LedgerChoice(**choice))
    named = DEMO.replace(ledger=LedgerChoice(chain_id=1, hub=f"0x{'ab' * 20}"))
    assert Manifest.loads(named.dumps()).ledger == named.ledger and named.run_id != DEMO.run_id
