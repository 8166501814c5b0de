"""A .gguf file as a Hugging Face folder, made once: transformers reads that in a tenth of the time, and can train it.

transformers 5.23 takes whatever comes out of a .gguf file for quantised, also when it is not, and then neither saves
nor trains it. So its weights are moved into a model that is made anew from the same configuration.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from memory.slm.tokenizer import read, tokenizer

FOLDER = "converted"  # below the home of the weights
BLOCK = 2**20


def converted(path: Path, home: Path) -> Path:
    """The folder that a .gguf file makes, in bfloat16. Takes some seconds the first time, and memory for two copies.

    Args:
        home: `<data directory>/models`.

    Raises:
        ValueError, OSError, RuntimeError: transformers cannot read it, or it cannot be written.
    """
    place = home / FOLDER / sha256(path)
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".begun-") as folder:
        made = Path(folder) / "model"
        write(path, made)
        try:
            os.rename(made, place)  # whole or not at all
        except OSError:
            if not place.is_dir():  # else another process was sooner
                raise
    return place


def write(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    write_weights(path, folder)
    words = AutoTokenizer.from_pretrained(**where(path))
    exact = tokenizer(read(path))
    if exact is not None and exact.pre_tokenizer is not None:  # transformers forgets how digits are cut
        words.backend_tokenizer.pre_tokenizer = exact.pre_tokenizer
    words.save_pretrained(folder)


def write_weights(path: Path, folder: Path) -> None:
    """The model without its vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(**where(path), dtype=torch.bfloat16)
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    config = AutoConfig.for_model(**fields)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)


def where(path: Path) -> dict[str, Any]:
    """How transformers is told of it."""
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
