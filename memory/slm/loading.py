"""A model and its tokenizer out of a Hugging Face folder, in the form that was asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory.slm.convert import converted
from memory.slm.folder import checked_files

SMALL = 1_000_000_000  # parameters: a model up to that size computes in float32 on a processor, which is faster there


def loaded(told: Mapping[str, Any]) -> tuple[Any, Any]:
    """The tokenizer and the model, ready to write. Nothing is fetched, no pickle read, no code of a model run.

    Raises:
        BadWeights: there is something among the files that must not be loaded.
        OSError, ValueError, RuntimeError, KeyError, ImportError: transformers cannot read them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of(told)
    checked_files(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, **form(told["quantization"])
    )
    if told["quantization"] == "none" and not on_gpu() and model.num_parameters() <= SMALL:
        model = model.float()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        tokenizer.chat_template = told["template"]
    return tokenizer, model.eval()


def folder_of(told: Mapping[str, Any]) -> Path:
    """Where the weights lie that are loaded; a .gguf file is converted the first time."""
    path = Path(told["path"])
    return converted(path, Path(told["home"])) if told["kind"] == "gguf" else path


def form(quantization: str) -> dict[str, Any]:
    """How the weights are to lie in memory."""
    import torch
    from transformers import BitsAndBytesConfig

    device = {"device_map": {"": 0}} if on_gpu() else {}
    if quantization == "none":
        return {"dtype": "auto", **device}
    rest = torch.bfloat16 if on_gpu() else torch.float32  # what is not quantized, and what is computed with
    if quantization == "8bit":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=rest)
    return {"dtype": rest, "quantization_config": how, **device}


def on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def own_window(model: Any) -> int | None:
    """The tokens that a model was made for."""
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return window if isinstance(window, int) else None
