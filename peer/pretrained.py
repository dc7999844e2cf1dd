"""Weights from disk or the hub: bound to the run by their hash, from safetensors or GGUF, in float32 or in 4 bits."""

from __future__ import annotations

from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dht.errors import ConfigError, IncompatibleRunError
from peer.sections import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pretrained(choice: Model, quantized: bool = True) -> PreTrainedModel:
    """The saved model of a manifest, on the CPU; `quantized=False` takes float32 whatever the manifest says.

    Raises IncompatibleRunError when the weights do not have the manifest's hash, ConfigError when there is no such
    file, and whatever transformers raises.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source: dict[str, Any] = {"revision": choice.revision} if choice.hub else {"local_files_only": True}
    if choice.path:
        check_weights(choice)
    if choice.gguf:
        source["gguf_file"] = choice.gguf
    in_4_bits = quantized and choice.quantized == "nf4"
    if in_4_bits:
        source |= {"quantization_config": _nf4(), "device_map": {"": "cpu"}}
    model = AutoModelForCausalLM.from_pretrained(
        choice.hub or choice.path, dtype=torch.float32, trust_remote_code=False, **source
    )
    if choice.gguf:
        forget_gguf(model)
    if in_4_bits:
        _keep_trainable(model)
    return cast("PreTrainedModel", model)


def config_of(choice: Model) -> Any:
    """The transformers config of a saved model, without its weights. Raises ConfigError."""
    from transformers import AutoConfig

    source: dict[str, Any] = {"revision": choice.revision} if choice.hub else {"local_files_only": True}
    if choice.path:
        _require_folder(choice)
    if choice.gguf:
        source["gguf_file"] = choice.gguf
    try:
        return AutoConfig.from_pretrained(choice.hub or choice.path, trust_remote_code=False, **source)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        where = choice.hub or choice.path
        raise ConfigError(f"cannot make the model {where}: {first}", remedy="check [model] in the manifest") from error


def weight_files(folder: Path, gguf: str = "") -> list[Path]:
    """The files that hold a folder's weights, by name. Raises ConfigError when there are none."""
    found = (
        [folder / gguf] if gguf else sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    )
    if not found or not all(path.is_file() for path in found):
        wanted = gguf or "weights (*.safetensors)"
        raise ConfigError(
            f"there is no {wanted} in the model's folder {folder}",
            remedy="check model.path and model.gguf; paths are relative to where run-peer starts",
        )
    return found


def weights_sha256(folder: Path, gguf: str = "") -> str:
    """SHA-256 of the weights in hexadecimal: of one file what sha256sum prints, of several that of these lines.

    Raises ConfigError when there are none.
    """
    lines = []
    for path in weight_files(folder, gguf):
        with path.open("rb") as file:
            lines.append((file_digest(file, "sha256").hexdigest(), path.name))
    if len(lines) == 1:
        return lines[0][0]
    return sha256("".join(f"{digest}  {name}\n" for digest, name in lines).encode()).hexdigest()


def check_weights(choice: Model) -> None:
    """Raise IncompatibleRunError unless the folder's weights have the manifest's hash, if it names one."""
    folder = _require_folder(choice)
    if choice.sha256 and (found := weights_sha256(folder, choice.gguf)) != choice.sha256:
        raise IncompatibleRunError(
            f"the weights in {folder} are not those of this run: SHA-256 {found[:16]}…, not {choice.sha256[:16]}…",
            remedy="get the model's folder from where the others have it; for a GGUF convert the same file",
        )


def _require_folder(choice: Model) -> Path:
    folder = Path(choice.path)
    if not folder.is_dir():
        raise ConfigError(
            f"cannot make the model {folder}: there is no such folder",
            remedy="check model.path; it is relative to where run-peer starts",
        )
    weight_files(folder, choice.gguf)
    return folder


def forget_gguf(model: Any) -> None:
    """Weights read from GGUF are plain float32 in memory; without this `save_pretrained` refuses to write them."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _nf4() -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    # Arithmetic is float32; autocast does its own.
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def _keep_trainable(model: Any) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks weights at the first evaluation and has no gradient afterwards."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
