"""Where training stands, on disk, so that a killed trainer goes on: weights, optimizer, draws. Safetensors only.

A checkpoint is a folder that is written beside its place and renamed, so there is never half of one. Imports torch.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from memory.errors import ModelError

Tensors = Mapping[str, torch.Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, beside the step


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands, without tensors."""

    step: int = 0
    best_loss: float | None = None  # on the watched rows
    looks_since_best: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()  # of each step


@dataclass(frozen=True, slots=True)
class Checkpoint:
    progress: Progress
    weights: Tensors
    best: Tensors | None
    optimizer: Tensors
    draws: torch.Tensor  # state of torch's generator


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write one, then forget the oldest beyond `keep`."""
    place = folder / f"{checkpoint.progress.step:08d}"
    beside = folder / f".{place.name}.part"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(solid(checkpoint.weights), beside / "weights.safetensors")
    save_file(solid({**checkpoint.optimizer, "draws": checkpoint.draws}), beside / "optimizer.safetensors")
    if checkpoint.best is not None:
        save_file(solid(checkpoint.best), beside / "best.safetensors")
    (beside / "progress.json").write_text(json.dumps(asdict(checkpoint.progress)))
    for path in beside.iterdir():
        sync(path)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)
    sync(folder)
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old)


def latest(folder: Path) -> Checkpoint | None:
    """The newest one.

    Raises:
        ModelError: it does not read.
    """
    places = saved(folder)
    if not places:
        return None
    place = places[-1]
    try:
        raw = json.loads((place / "progress.json").read_text())
        optimizer = load_file(place / "optimizer.safetensors")
        best = place / "best.safetensors"
        return Checkpoint(
            Progress(**{**raw, "losses": tuple(raw["losses"])}),
            load_file(place / "weights.safetensors"),
            load_file(best) if best.exists() else None,
            {name: tensor for name, tensor in optimizer.items() if name != "draws"},
            optimizer["draws"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"the checkpoint {place} does not read; delete it to go on from an older one") from error


def saved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def solid(tensors: Tensors) -> dict[str, torch.Tensor]:
    """A copy of its own: training goes on and changes what it was taken from."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's moments by the place of their parameter."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{place}.{name}": state[place][name] for place in state for name in (*MOMENTS, "step")}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        place, _, moment = name.partition(".")
        state.setdefault(int(place), {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
