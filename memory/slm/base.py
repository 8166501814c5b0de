"""A model in this process, for training and measuring: loading it, with and without an adapter.

Imports torch, so only the child processes import this file.
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from memory.errors import InvalidRequest, LLMMemoryError, ModelError
from memory.slm.adapters import Adapter
from memory.slm.carried import put_on
from memory.slm.folder import checked_model
from memory.slm.recipe import Device, Precision, Quantization

CPU_PARAMETERS = 500_000_000  # a larger model does not learn on a processor in any useful time
DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded model; `model` may carry adapters."""

    model: Any
    tokenizer: Any
    device: torch.device
    parameters: int


def load(
    folder: Path,
    quantization: Quantization = Quantization.NONE,
    precision: Precision = Precision.FP32,
    device: Device = Device.AUTO,
    force: bool = False,
) -> Base:
    """Load a model from a folder with config.json, *.safetensors, tokenizer and chat template.

    Args:
        force: also where it is too large to be trained on a processor.

    Raises:
        InvalidRequest: the folder holds no such model, it has no chat template, or it is too large.
        ModelError: out of memory, or a library that is needed is missing.
    """
    check_folder(folder)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    place = device_of(device)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        parameters = parameters_of(config)
        if place.type == "cpu" and parameters > CPU_PARAMETERS and not force:
            raise InvalidRequest(
                f"{folder.name} has {parameters / 1e6:,.0f} million parameters; on a processor at most "
                f"{CPU_PARAMETERS / 1e6:,.0f} million learn in useful time: use a GPU, or force it",
                "base",
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[precision],
            quantization_config=quantized(quantization, precision),
            device_map={"": str(place)},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if is_memory(error):
            raise
        raise ModelError(f"{folder} does not load: {type(error).__name__}: {first_line(error)}") from error
    if not tokenizer.chat_template:
        raise InvalidRequest(f"{folder.name} has no chat template, so nobody can chat with it or teach it to", "base")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return Base(model.eval(), tokenizer, place, parameters)


def keep_trainable(base: Base) -> None:
    """Keep bitsandbytes from laying 4-bit weights out anew when a model first answers, as it does on some processors.

    Through that layout no gradient comes back, and nothing says so.
    """
    for module in base.model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_folder(folder: Path) -> None:
    """
    Raises:
        InvalidRequest: there is no model.
        BadWeights: it is cut off, or must not be loaded.
    """
    if not folder.is_dir():
        raise InvalidRequest(f"there is no folder {folder}; a base model is a folder with safetensors weights", "base")
    names = {path.name for path in folder.iterdir()}
    missing = [name for name in ("config.json", "tokenizer.json") if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if missing:
        raise InvalidRequest(f"{folder} is no model: {', '.join(missing)} missing", "base")
    checked_model(folder)


def device_of(device: Device) -> torch.device:
    there = torch.cuda.is_available()
    if device is Device.CUDA and not there:
        raise InvalidRequest("device is cuda, but torch sees no GPU here", "device")
    return torch.device("cuda" if there and device is not Device.CPU else "cpu")


def parameters_of(config: Any) -> int:
    """How many a model has, without loading it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def quantized(quantization: Quantization, precision: Precision) -> BitsAndBytesConfig | None:
    match quantization:
        case Quantization.NONE:
            return None
        case Quantization.BITS_8:
            return BitsAndBytesConfig(load_in_8bit=True)
        case Quantization.BITS_4:
            return BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[precision]
            )


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def attach(base: Base, adapter: Adapter) -> tuple[Base, Callable[[], Any]]:
    """The model with an adapter that has been looked at, and what gives the bare model back, exactly as it was.

    Raises:
        BadAdapter: it cannot be taken off again exactly, its numbers are none, or they fit nothing.
    """
    model = put_on(base.model, None, "default", adapter)
    return replace(base, model=model), model.unload


def is_memory(error: BaseException) -> bool:
    """Whether there was not enough; torch says so in words of a RuntimeError."""
    return isinstance(error, MemoryError) or "memory" in str(error)


def limit_memory(megabytes: int) -> None:
    """Of this process's own memory; 0: no limit. What asks for more fails and can be told."""
    if megabytes:
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 2**20, resource.RLIM_INFINITY))


def explained(error: BaseException, most_memory_mb: int = 0) -> dict[str, str]:
    """An error as a child tells it: what a reader can do about it, and nothing of what was read."""
    if isinstance(error, LLMMemoryError):
        return {"kind": type(error).__name__, "message": str(error)}
    if is_memory(error):
        limit = f" of {most_memory_mb:,} MB" if most_memory_mb else ""
        advice = "lower batch_size or row_tokens, set gradient_checkpointing, or give it more"
        return {"kind": "OutOfMemory", "message": f"the model needs more memory than there is{limit}; {advice}"}
    return {"kind": type(error).__name__, "message": f"the model failed: {type(error).__name__}"}
