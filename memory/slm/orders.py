"""What the trainer and the measurer are told, and how it goes over a pipe. Pure."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory.slm.recipe import Device, Precision, Quantization, Recipe, recipe_of
from memory.slm.samples import Canary, Question


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """What is to be trained; the same order again goes on where it was cut."""

    base: Path  # folder of the base model, with safetensors
    rows: Path  # JSONL, as `samples.as_lines` writes it
    folder: Path  # of this training alone
    recipe: Recipe
    base_name: str = ""  # under which engines know the base
    threads: int = 1
    most_seconds: float = 0.0  # of all runs of this order together; 0: no limit
    most_memory_mb: int = 0  # of the process; 0: no limit
    force: bool = False  # also where the model is too large for a processor

    def line(self) -> str:
        return line_of({**plain(self), "recipe": self.recipe.as_json()})


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a held-out conversation, as the reader gets it."""

    id: str
    conversation: str
    messages: tuple[tuple[str, str], ...]  # role and content
    answer: str


@dataclass(frozen=True, slots=True)
class MeasuringOrder:
    """What is to be measured, each with the same questions."""

    base: Path
    questions: tuple[Asked, ...]
    adapters: Mapping[str, Path]  # name -> published folder
    exampled: tuple[Asked, ...] = ()  # the same questions with examples, as the base alone is asked
    canaries: tuple[Canary, ...] = ()
    most_control: int = 50  # of the shipped control questions; the gate wants all
    most_open: int = 10  # of the shipped open requests
    bare: bool = True  # measure the base without an adapter, too: `base`, and `base with examples`
    quantization: Quantization = Quantization.NONE
    precision: Precision = Precision.FP32
    device: Device = Device.AUTO
    threads: int = 1
    most_memory_mb: int = 0

    def line(self) -> str:
        return line_of(plain(self))


Order = TrainingOrder | MeasuringOrder


def training_order(raw: Mapping[str, Any]) -> TrainingOrder:
    read = {**raw, **{name: Path(raw[name]) for name in ("base", "rows", "folder")}, "recipe": recipe_of(raw["recipe"])}
    return TrainingOrder(**read)


def measuring_order(raw: Mapping[str, Any]) -> MeasuringOrder:
    read = {
        "base": Path(raw["base"]),
        **{name: tuple(map(asked_from, raw[name])) for name in ("questions", "exampled")},
        "adapters": {name: Path(folder) for name, folder in raw["adapters"].items()},
        "canaries": tuple(Canary(**one) for one in raw["canaries"]),
        "quantization": Quantization(raw["quantization"]),
        "precision": Precision(raw["precision"]),
        "device": Device(raw["device"]),
    }
    return MeasuringOrder(**{**raw, **read})


def asked_from(raw: Mapping[str, Any]) -> Asked:
    return Asked(**{**raw, "messages": tuple(map(tuple, raw["messages"]))})


def asked(question: Question, examples: bool = False) -> Asked:
    """A question as a reader with an adapter is asked; with `examples` as the bare model is, which needs them."""
    return Asked(question.id, question.conversation, question.prompt(examples), question.answer)


def plain(order: Order) -> dict[str, Any]:
    return asdict(order)


def line_of(values: Mapping[str, Any]) -> str:
    return json.dumps(values, default=str) + "\n"
