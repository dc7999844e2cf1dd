"""From a peer's settings and the run's manifest to a trainer: tokenizer, data, model, micro-batch."""

from __future__ import annotations

import logging

from dht.errors import DataError
from peer.batching import fit, step_sequences
from peer.config import PeerConfig
from peer.data import TokenBatches, TokenData, open_data
from peer.estimate import needs
from peer.manifest import Manifest
from peer.memory import gauge
from peer.model import build_model, check_fit
from peer.precision import Precision
from peer.private_trainer import private_trainer, unprotected
from peer.tokenizer import load_tokenizer
from peer.trainer import Trainer

log = logging.getLogger(__name__)


def make_trainer(config: PeerConfig, manifest: Manifest) -> tuple[Trainer, TokenData | None]:
    """The trainer of this peer, and its held-out text if it has any. Raises ConfigError and DataError."""
    tokenizer = load_tokenizer(manifest)
    if not config.data:
        raise DataError("no training data is given", remedy="name a file, folder or dataset with --data")
    cache = config.data_dir / "tokens"
    data = open_data(config.data, manifest, tokenizer, cache=cache, text_field=config.text_field)
    try:
        heldout: TokenData | None = open_data(
            config.data, manifest, tokenizer, "heldout", cache=cache, text_field=config.text_field
        )
    except DataError as error:
        log.warning("no held-out loss will be shown: %s", error.message)
        heldout = None
    needs(manifest).check(gauge(Precision.resolve(config.device, manifest.model.dtype).torch_device).free())
    model = build_model(manifest)
    check_fit(model, tokenizer, manifest)
    precision = None if config.precision == "auto" else config.precision
    sequences = step_sequences(manifest, config.batch_size)
    if config.dp:
        return private_trainer(config, manifest, model, data, sequences), heldout
    unprotected(config.data_dir, data.fingerprint)
    batches = TokenBatches(data, sequences, config.seed)
    trainer = Trainer(model, batches, manifest, config.device, precision, config.threads or None)
    if shortage := data.shortage(sequences):
        log.warning("%s", shortage)
        trainer.notes.append(shortage)
    fit(trainer, sequences, config.batch_size)
    return trainer, heldout
