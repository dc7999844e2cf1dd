"""transformers' own Trainer as a peer, beside the network in memory or a stand-in that only asks for local steps."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from averaging.guard import SqliteGuard
from dht.errors import ConfigError, IncompatibleRunError, LockedError, MurmurationError, UnreachableError
from dht.identity import Identity
from dht.lock import FolderLock
from peer import callback as callbacks
from peer import node as nodes
from peer.baton import Baton
from peer.beside import PeerBeside
from peer.callback import MurmurationCallback
from peer.config import PeerConfig
from peer.dp import CLAIM_DELTA, Account, Spent
from peer.manifest import Adapter, Manifest
from peer.model import build_model
from peer.node import Node, _assemble
from peer.tokenizer import byte_tokenizer
from peer.trainer import TrainResult
from tests.peer.swarm_in_process import BATCH, SEQUENCE, STEPS, TEXT, Events, identity, make_trainer, tiny_manifest
from tests.peer.test_node import Host, Street

PADDING = 5
"""Tokens at the end of every sequence of the script that are padding."""


class Neighbours:
    """`run_peer` for the script's peer, with two usual peers beside it in the same event loop."""

    def __init__(self, manifest: Manifest, folder: Path, street: Street) -> None:
        self.manifest, self.folder, self.street = manifest, folder, street
        self.nodes: list[Node] = []

    async def run(self, config: PeerConfig, manifest: Manifest, reporter: Any, stop: asyncio.Event, given: Any) -> None:
        mine = Identity.load(config.identity_path)
        lives = [self._live(config, mine, given[0], reporter, stop)]
        for index in (0, 1):
            settings = PeerConfig(data_dir=self.folder / str(index), threads=1, rounds=config.rounds)
            lives.append(self._live(settings, identity(index), make_trainer(manifest, index), Events(), stop))
        await asyncio.gather(*lives)

    async def _live(self, config: PeerConfig, who: Identity, trainer: Any, reporter: Any, stop: asyncio.Event) -> None:
        config.data_dir.mkdir(exist_ok=True)
        guard = SqliteGuard(config.data_dir / "guard.sqlite")
        host: Any = Host(self.street.network, who.peer_id)
        node = _assemble(config, self.manifest, who, trainer, None, host, guard, reporter)
        self.nodes.append(node)
        try:
            await node.run(stop)
        finally:
            await node.close()


class Asking:
    """A stand-in for the peer: asks for `steps` local steps again and again until it is told to leave."""

    def __init__(self, steps: int = 2, fault: Exception | None = None) -> None:
        self.steps, self.fault = steps, fault
        self.results: list[TrainResult] = []
        self.told = False

    async def run(self, config: Any, manifest: Any, reporter: Any, stop: asyncio.Event, given: Any) -> None:
        baton: Baton = given[0]
        while not stop.is_set():
            self.results.append(await asyncio.to_thread(baton.train, self.steps, stop.is_set))
            before = baton.local().copy()
            await asyncio.sleep(0.01)
            assert np.array_equal(before, baton.local()), "the loop took a step while the peer had the model"
            if self.fault is not None:
                raise self.fault
        self.told = True


class Script:
    """Somebody's fine-tuning script."""

    def __init__(
        self, folder: Path, monkeypatch: Any, run: Callable[..., Any], manifest: Manifest | None = None, **settings: Any
    ) -> None:
        self.manifest, self.home = manifest or tiny_manifest(3), folder / "2"
        (folder / "run.toml").write_text(self.manifest.dumps())
        monkeypatch.setattr(callbacks, "PeerBeside", functools.partial(PeerBeside, run=run))
        self.callback = MurmurationCallback(folder / "run.toml", data_dir=self.home, quiet=True, **settings)
        self.folder = folder

    def trainer(self, model: Any = None, tokenizer: Any = None, extra: Any = (), **arguments: Any) -> Trainer:
        rows = [list(TEXT[at : at + SEQUENCE]) for at in range(0, 64 * SEQUENCE, SEQUENCE)]
        mask = [1] * (SEQUENCE - PADDING) + [0] * PADDING
        chosen = {"max_steps": 50, "per_device_train_batch_size": BATCH, "learning_rate": 3e-3, "logging_steps": 1000}
        made = Trainer(
            model=build_model(self.manifest) if model is None else model,
            args=TrainingArguments(
                output_dir=str(self.folder / "out"),
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                dataloader_pin_memory=False,
                **chosen | arguments,
            ),
            train_dataset=[{"input_ids": row, "labels": row, "attention_mask": mask} for row in rows],
            processing_class=tokenizer,
            callbacks=list(extra),
        )
        made.add_callback(self.callback)
        return made

    def has_left(self) -> bool:
        """Whether the thread has ended and the folder is free."""
        for thread in threading.enumerate():
            if thread.name == "murmuration":
                thread.join(10)
                assert not thread.is_alive()
        FolderLock(self.home).release()
        return True


class At(TrainerCallback):
    """Does something when a step begins: `At({3: action})`."""

    def __init__(self, actions: dict[int, Callable[[Any], None]]) -> None:
        self.actions = actions

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if action := self.actions.get(state.global_step):
            action(named["model"])


def fail(error: BaseException) -> Callable[[Any], None]:
    def action(_: Any) -> None:
        raise error

    return action


@pytest.fixture
def street(monkeypatch: pytest.MonkeyPatch) -> Street:
    street = Street()
    monkeypatch.setattr(nodes, "Discovery", SimpleNamespace(start=street.start))
    monkeypatch.setattr(nodes, "_SEARCH_SOON", 0.01)
    monkeypatch.setattr(nodes, "_LINGER", 0.5)
    return street


def test_a_script_and_two_peers_reach_the_same_root(tmp_path: Path, street: Street, monkeypatch: pytest.MonkeyPatch):
    neighbours = Neighbours(tiny_manifest(3), tmp_path, street)
    script = Script(tmp_path, monkeypatch, neighbours.run, rounds=2)
    model = build_model(script.manifest)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)  # the script's own first weights do not count
    trainer = script.trainer(model, byte_tokenizer(), gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2 * STEPS  # training ended with the last round
    assert {node._learner.state.root() for node in neighbours.nodes} == {script.callback.root}
    assert script.callback.round == 2
    ours = Baton(model, script.manifest).local()
    np.testing.assert_array_equal(ours, neighbours.nodes[1]._learner.state.parameters)
    chain = neighbours.nodes[1]._participant.chain
    assert chain is not None
    mine = Identity.load(script.home / "identity.key").peer_id
    told = [row.tokens for number in (1, 2) for row in chain.record(number).survivors if row.peer == mine]
    assert told == [STEPS * 2 * BATCH * (SEQUENCE - PADDING)] * 2
    assert sum(told) == trainer.state.num_input_tokens_seen
    moments = [entry["step"] for entry in trainer.optimizer.state.values()]
    assert moments and all(float(step) == 2 * STEPS for step in moments)
    assert script.has_left()


def test_in_a_run_with_overlap_the_script_trains_on(tmp_path: Path, street: Street, monkeypatch: pytest.MonkeyPatch):
    manifest = tiny_manifest(3, overlap=True)
    neighbours = Neighbours(manifest, tmp_path, street)
    script = Script(tmp_path, monkeypatch, neighbours.run, manifest, rounds=2)
    model = build_model(manifest)
    trainer = script.trainer(model, max_steps=10_000)
    trainer.train()
    assert 2 * STEPS <= trainer.state.global_step < 10_000
    assert {node._learner.state.root() for node in neighbours.nodes} == {script.callback.root}
    np.testing.assert_array_equal(Baton(model, manifest).local(), neighbours.nodes[1]._learner.state.parameters)
    assert script.has_left()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_of_the_scripts_own_making_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapter = Adapter(kind="lora", rank=2, targets=("q_proj",), freeze_a=True)
    manifest = tiny_manifest(3).replace(adapter=adapter)
    asking = Asking()
    script = Script(tmp_path, monkeypatch, asking.run, manifest)
    base = build_model(tiny_manifest(3))
    config = LoraConfig(r=2, lora_alpha=adapter.alpha, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config)
    with pytest.raises(IncompatibleRunError, match=r"this model trains .*lora_A"):
        script.trainer(model).train()
    wanted = dict(build_model(manifest).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    before = {name: entry.detach().clone() for name, entry in model.named_parameters()}
    script.trainer(model, max_steps=2).train()
    after = dict(model.named_parameters())
    assert wanted.keys() == after.keys()
    for name, parameter in after.items():
        if "lora_B" in name:
            assert not torch.equal(parameter, before[name])  # the steps
        else:
            assert torch.equal(parameter, wanted[name]), name  # the run's A, not the one that the script drew
    assert any(not torch.equal(after[name], before[name]) for name in after if "lora_A" in name)


def test_the_loss_is_per_token_with_and_without_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for accumulation in (1, 4):
        asking = Asking()
        script = Script(tmp_path, monkeypatch, asking.run)
        script.trainer(max_steps=2, gradient_accumulation_steps=accumulation).train()
        assert asking.results[0].steps == 2
        assert asking.results[0].loss_mean == pytest.approx(np.log(257), rel=0.05)


@pytest.mark.parametrize("what", ["shape", "dtype", "more", "less", "tokenizer", "best"])
def test_what_does_not_fit_is_refused_before_anything_starts(what: str, tmp_path: Path, monkeypatch: Any):
    script = Script(tmp_path, monkeypatch, Asking().run)
    arguments: dict[str, Any] = {}
    model, error, says = build_model(script.manifest), IncompatibleRunError, ""
    if what == "shape":
        sizes = dict(script.manifest.model.config, intermediate_size=40)
        changed = script.manifest.replace(model=type(script.manifest.model)(config=sizes))
        model, says = build_model(changed), r"\[24, 40\] in this model and \[24, 32\] in the run"
    elif what == "dtype":
        model, error, says = model.to(torch.bfloat16), ConfigError, "bfloat16"
    elif what == "more":
        model.register_parameter("head", torch.nn.Parameter(torch.ones(2)))
        says = "this model trains head"
    elif what == "less":
        model.model.norm.weight.requires_grad_(False)
        says = "the run trains model.norm.weight"
    elif what == "tokenizer":
        arguments["tokenizer"], says = byte_tokenizer(), "tokenizer"
        arguments["tokenizer"].add_tokens(["starling"])
    else:
        error, says = ConfigError, "load_best_model_at_end"
    trainer = script.trainer(model, **arguments)
    trainer.args.load_best_model_at_end = what == "best"
    with pytest.raises(error, match=says) as caught:
        trainer.train()
    assert caught.value.remedy
    assert not script.home.exists()


def test_settings_are_checked_at_once(tmp_path: Path):
    for name, value in (("batch_size", 4), ("dp", True)):
        with pytest.raises(ConfigError, match="script's own Trainer"):
            MurmurationCallback("run.toml", **{name: value})
    with pytest.raises(ConfigError, match="no setting"):
        MurmurationCallback("run.toml", bootstraps=())
    assert MurmurationCallback("run.toml", data_dir=tmp_path, rounds=3).config.rounds == 3


def test_one_process_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = Script(tmp_path, monkeypatch, Asking().run)
    with FolderLock(script.home), pytest.raises(LockedError):
        script.trainer().train()


@pytest.mark.parametrize("fault", [UnreachableError("nobody there", remedy="try"), ValueError("a bug")])
def test_a_failure_beside_the_script_ends_it(fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asking = Asking(fault=fault)
    script = Script(tmp_path, monkeypatch, asking.run)
    trainer = script.trainer()
    with pytest.raises(MurmurationError) as caught:
        trainer.train()
    assert caught.value is fault if isinstance(fault, MurmurationError) else caught.value.__cause__ is fault
    assert trainer.state.global_step == 2
    assert script.has_left()


def test_the_first_interrupt_ends_training_in_good_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asking, before = Asking(), signal.getsignal(signal.SIGINT)
    script = Script(tmp_path, monkeypatch, asking.run)
    trainer = script.trainer(extra=[At({3: lambda _: signal.raise_signal(signal.SIGINT)})])
    trainer.train()  # returns
    assert asking.told
    assert 3 <= trainer.state.global_step <= 5
    assert signal.getsignal(signal.SIGINT) is before
    assert script.has_left()


@pytest.fixture
def pythons_interrupt() -> Iterator[None]:
    """Python's own handler, which a process that was started with interrupts ignored (a shell's `&`) does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_interrupt")
def test_the_second_interrupt_is_pythons_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def twice(_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    script = Script(tmp_path, monkeypatch, Asking().run)
    with pytest.raises(KeyboardInterrupt):
        script.trainer(extra=[At({3: twice})]).train()
    assert script.has_left()


def test_an_exception_in_the_loop_ends_the_peer_and_the_loop_can_be_tried_again(tmp_path: Path, monkeypatch: Any):
    asking = Asking()
    script = Script(tmp_path, monkeypatch, asking.run)
    with pytest.raises(ZeroDivisionError):
        script.trainer(extra=[At({3: fail(ZeroDivisionError())})]).train()
    assert script.has_left()  # found out by itself
    assert asking.told
    trainer = script.trainer(max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4


def test_the_end_of_training_ends_a_round_that_wants_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asking = Asking(steps=5)
    script = Script(tmp_path, monkeypatch, asking.run)
    script.trainer(max_steps=7).train()
    assert [result.steps for result in asking.results] == [5, 2]
    assert script.has_left()


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asking = Asking(steps=2)
    script = Script(tmp_path, monkeypatch, asking.run)
    hooks: list[Any] = []

    def poison(model: Any) -> None:
        hooks.append(model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan")))

    trainer = script.trainer(extra=[At({1: poison, 2: lambda _: hooks[0].remove()})], max_steps=4)
    trainer.train()
    assert [(result.steps, result.skipped) for result in asking.results[:2]] == [(1, 1), (2, 0)]
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters())


def test_too_many_such_steps_end_the_rounds_training_and_forget_the_moments(tmp_path: Path, monkeypatch: Any):
    class StartingOver(Asking):
        async def run(self, config: Any, manifest: Any, reporter: Any, stop: asyncio.Event, given: Any) -> None:
            baton: Baton = given[0]
            certified = baton.local().copy()
            self.results.append(await asyncio.to_thread(baton.train, 50, stop.is_set))
            self.moments = len(trainer.optimizer.state)
            baton.start_over(certified)
            self.moments_after = len(trainer.optimizer.state)

    asking = StartingOver()
    script = Script(tmp_path, monkeypatch, asking.run)

    def poison(model: Any) -> None:
        model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))

    trainer = script.trainer(extra=[At({1: poison})])
    trainer.train()
    limit = script.manifest.train.max_bad_steps
    assert (asking.results[0].steps, asking.results[0].skipped) == (1, limit)
    assert f"in {limit} local steps in a row" in asking.results[0].trouble
    assert asking.moments > 0 == asking.moments_after


def test_a_folder_that_promised_privacy_promises_nothing_after_a_script(tmp_path: Path, monkeypatch: Any):
    script = Script(tmp_path, monkeypatch, Asking().run)
    script.home.mkdir()
    Account.load(script.home).add(Spent("text", 2.0, 0.01, 3))
    assert np.isfinite(Account.load(script.home).epsilon(CLAIM_DELTA))
    script.trainer(max_steps=2).train()
    assert not np.isfinite(Account.load(script.home).epsilon(CLAIM_DELTA))
