"""Tokenizers: one token per byte (no files needed), a folder, or the Hugging Face hub.

The byte tokenizer is a plain transformers tokenizer: saved beside a model, `AutoTokenizer.from_pretrained` loads it
with no code of ours. Token i is byte i; token 256 ends a document, pads and begins.
"""

from __future__ import annotations

import logging
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dht.errors import ConfigError
from peer.manifest import Manifest, TokenizerChoice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
END_OF_TEXT = "<|endoftext|>"
BYTE_VOCABULARY = 257


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A fast tokenizer whose token ids are the UTF-8 bytes of the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _byte_symbols() -> list[str]:
    """The printable stand-in of every byte in the ByteLevel alphabet (that of GPT-2): itself where it is printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in symbols]
    symbols |= {byte: chr(256 + position) for position, byte in enumerate(rest)}
    return [symbols[byte] for byte in range(256)]


def load_tokenizer(manifest: Manifest) -> PreTrainedTokenizerBase:
    """The tokenizer that the manifest names. Raises ConfigError when it cannot be loaded."""
    choice = manifest.tokenizer
    if choice.kind == "bytes":
        return byte_tokenizer()
    from transformers import AutoTokenizer

    where: dict[str, Any] = {"revision": choice.revision} if choice.kind == "hub" else {"local_files_only": True}
    if manifest.model.gguf and choice.source == manifest.model.path:
        where["gguf_file"] = manifest.model.gguf
    try:
        tokenizer = AutoTokenizer.from_pretrained(choice.source, **where)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError and its own
        raise _unloadable(choice, error) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer {choice.source} has no end-of-text token",
            remedy="set eos_token in its tokenizer_config.json",
        )
    return tokenizer


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, manifest: Manifest) -> None:
    """Raise ConfigError when the model's folder holds a tokenizer that gives other numbers to the same pieces of text.

    Such a model would read noise, however well the sizes fit. One that only splits text elsewhere is a warning.
    """
    folder, choice = Path(manifest.model.path), manifest.tokenizer
    if not manifest.model.path or (choice.kind == "path" and Path(choice.source) == folder):
        return
    if not manifest.model.gguf and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return
    same = TokenizerChoice(kind="path", source=manifest.model.path)
    try:
        models = load_tokenizer(manifest.replace(tokenizer=same))
    except ConfigError as error:
        log.warning("the tokenizer in the model's own folder was not compared: %s", error.message)
        return
    ours, theirs = tokenizer.get_vocab(), models.get_vocab()
    if ours != theirs:
        differing = len({piece for piece in ours.keys() | theirs.keys() if ours.get(piece) != theirs.get(piece)})
        raise ConfigError(
            f"the run's tokenizer is not the model's: {differing} of {len(ours.keys() | theirs.keys())} tokens differ",
            remedy=f'set [tokenizer] kind = "path" and source = "{manifest.model.path}"',
        )
    if fingerprint(tokenizer) != fingerprint(models):
        log.warning("the run's tokenizer splits text by other rules than the one in %s", folder)


def _unloadable(choice: TokenizerChoice, error: Exception) -> ConfigError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ConfigError(
        f"cannot load the tokenizer {choice.source}: {first}", remedy="check [tokenizer] in the manifest"
    )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hexadecimal digits that change when the tokens of some text may change."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return sha256(f"{type(tokenizer).__name__}\n{text}".encode()).hexdigest()[:32]


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether token ids are the bytes of the text, so that encoding needs no tokenizer at all."""
    return fingerprint(tokenizer) == fingerprint(byte_tokenizer())
