"""Adapters with random weights, as a trainer would leave them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from memory.slm.adapters import CONFIG, WEIGHTS, Adapter, Foundation, publish

RANK = 4


def trained(folder: Path, base: Foundation, seed: int, ends: Sequence[str] = ("q_proj", "v_proj")) -> Path:
    """The two files of an adapter that changes all modules with these ends."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in base.shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(ends)):
            spread = 0.5 / np.sqrt(shape[1])
            for side, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                drawn = rng.normal(0, spread * 4, size).astype(np.float32)
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = drawn
    save_file(tensors, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none", "target_modules": list(ends)}
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


def published(
    place: Path, tenant: str, base: Foundation, seed: int, ends: Sequence[str] = ("q_proj", "v_proj")
) -> Adapter:
    """One in its home, `place/adapters`."""
    return publish(place / "adapters", tenant, base, trained(place / f"trained {tenant} {seed}", base, seed, ends), {})
