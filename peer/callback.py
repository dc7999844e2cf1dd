"""An existing fine-tuning script joins a run with two added lines:

    from peer.callback import MurmurationCallback
    trainer.add_callback(MurmurationCallback("run.toml", bootstrap=["/ip4/..."]))

Model, data, optimizer, schedule and loop stay the script's own (`transformers.Trainer`). After as many optimizer steps
as the manifest says the loop rests until the round is decided, then goes on from the certified parameters.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from dht.errors import ConfigError, DataError, MurmurationError
from peer.baton import Baton, LossMeter
from peer.beside import Certified, PeerBeside
from peer.cli import existing
from peer.config import DEFAULT_DATA_DIR, DEFAULT_RUN, PeerConfig
from peer.data import TokenData, open_data
from peer.fit import check_arguments, check_tokenizer, take_first_weights
from peer.manifest import Manifest
from peer.private_trainer import unprotected
from peer.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

log = logging.getLogger(__name__)
_PRIVACY = ("dp", "dp_epsilon", "dp_delta", "dp_noise", "dp_clip")
_TRAINERS_OWN = ("config", "device", "precision", "batch_size", "seed", "json", "log_format", *_PRIVACY)


class MurmurationCallback(TrainerCallback):
    """Takes part in a run while `Trainer.train` runs. One run at a time; `train` may be called again afterwards.

    `round` and `root` say which certified state the model holds when training has ended (None: no round was certified).
    """

    def __init__(
        self,
        run: str | Path = DEFAULT_RUN,
        *,
        data_dir: str | Path = DEFAULT_DATA_DIR,
        bootstrap: Iterable[str] = (),
        **settings: Any,
    ) -> None:
        """`settings`: the other flags of run-peer by their names in `PeerConfig`, such as rounds or client_mode.

        `data` is optional here: text whose held-out part is measured after every round. Raises ConfigError.
        """
        known = {field.name for field in dataclasses.fields(PeerConfig)} - set(_TRAINERS_OWN)
        for name in settings.keys() - known:
            what = "belongs to the script's own Trainer" if name in _TRAINERS_OWN else "is no setting of a peer"
            raise ConfigError(f"{name} {what}", remedy=f"MurmurationCallback takes {', '.join(sorted(known))}")
        places = (bootstrap,) if isinstance(bootstrap, str) else tuple(bootstrap)
        folder = Path(data_dir).expanduser()
        self.config = PeerConfig(run=Path(run), data_dir=folder, bootstrap=places, **settings)
        self.round: int | None = None
        self.root: bytes | None = None
        self._peer: PeerBeside | None = None
        self._baton: Baton | None = None
        self._meter: LossMeter | None = None
        self._certified: Certified | None = None
        self._seen = 0
        self._left_out = False
        self._give_back_interrupts: Callable[[], None] = lambda: None

    # --- what Trainer calls -------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Check that script and run fit, start the peer, and wait until its first round wants local steps."""
        self._end()  # a loop that was broken off by an exception and is tried again
        check_arguments(args)
        manifest = Manifest.load(existing(self.config.run))
        model: PreTrainedModel = named["model"]
        if named.get("processing_class") is not None:
            check_tokenizer(named["processing_class"], manifest)
        heldout = self._open_heldout(manifest)
        take_first_weights(model, manifest)
        if args.include_num_input_tokens_seen == "no":
            args.include_num_input_tokens_seen = "non_padding"  # a peer says how many tokens are behind its update
        self._seen = state.num_input_tokens_seen
        self._baton = Baton(model, manifest, lambda: named["optimizer"].state.clear())
        self._certified = self.round = self.root = None
        self._peer = PeerBeside(self.config, manifest, (self._baton, heldout))
        unprotected(self.config.data_dir, "transformers.Trainer")  # nobody here can vouch for what the script does
        self._meter = LossMeter(model)
        self._take_interrupts(self._peer)
        self._peer.start(_loop_code())
        self._rest(control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """A deadline may have passed while the script evaluated or saved."""
        self._rest(control)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any
    ) -> None:
        """Leave out a step whose gradient is not finite: it would end this peer's part in the run, and its moments."""
        if self._baton is None or args.fp16:  # with fp16 the loss scaler does the same
            return
        gradients = [p.grad for p in named["model"].parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        if not math.isfinite(norm):
            log.warning("skipped an optimizer step: its gradient is not finite")
            named["optimizer"].zero_grad(set_to_none=True)
            self._baton.skipped(norm)
            self._left_out = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Count the step; after the last one of a round wait for the certified parameters."""
        if self._baton is None or self._meter is None:
            return
        tokens, self._seen = state.num_input_tokens_seen - self._seen, state.num_input_tokens_seen
        loss = self._meter.take()
        if not self._left_out:
            self._baton.stepped(tokens, loss)
        self._left_out = False
        self._rest(control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Leave the run; the model holds the last certified round. What was learned since is kept for the next time."""
        self._end()
        self._take_certified()  # Trainer takes one more step where the peer ended before a step

    # --- the peer beside ----------------------------------------------------------------------------------------

    def _rest(self, control: TrainerControl) -> None:
        """Let the peer have the model. Once it has left the run, training stops, or raises what went wrong."""
        if self._peer is None or self._baton is None:
            return
        try:
            wanted = self._baton.at_rest()
        except BaseException:  # a second Ctrl-C
            with suppress(MurmurationError):
                self._end()
            raise
        if not wanted:
            self._end()
            control.should_training_stop = True

    def _end(self) -> None:
        """End the peer if there is one; the model holds the certified parameters then. Raises what ended the peer."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self._give_back_interrupts()
        if self._meter is not None:
            self._meter.close()
        peer.leave()
        self._certified = peer.certified
        self._take_certified()
        if peer.error is not None:
            raise peer.error

    def _take_certified(self) -> None:
        if self._baton is not None and self._certified is not None:
            self.round, self.root = self._certified.round, self._certified.root
            self._baton.set_parameters(self._certified.parameters)

    def _open_heldout(self, manifest: Manifest) -> TokenData | None:
        if not self.config.data:
            return None
        options: Any = {"cache": self.config.data_dir / "tokens", "text_field": self.config.text_field}
        try:
            return open_data(self.config.data, manifest, load_tokenizer(manifest), "heldout", **options)
        except DataError as error:
            log.warning("no held-out loss will be shown: %s", error.message)
            return None

    def _take_interrupts(self, peer: PeerBeside) -> None:
        """The first Ctrl-C leaves in good order and ends the training loop; the second is Python's again."""
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGINT)

        def interrupted(number: int, frame: FrameType | None) -> None:
            signal.signal(number, before)
            print("leaving: finishing and saving; Ctrl-C again does not wait", file=sys.stderr)
            peer.ask_to_leave()

        signal.signal(signal.SIGINT, interrupted)

        def give_back() -> None:
            if signal.getsignal(signal.SIGINT) is interrupted:
                signal.signal(signal.SIGINT, before)

        self._give_back_interrupts = give_back


def _loop_code() -> CodeType | None:
    """The function of Trainer's that calls the callbacks: while it is on the stack, training goes on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "transformers.trainer_callback"):
        frame = frame.f_back
    return None if frame is None else frame.f_code
