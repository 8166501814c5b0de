"""How an adapter is trained: all that one needs to train it again. Pure."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from memory import check
from memory.errors import InvalidRequest


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"


class Device(StrEnum):
    AUTO = "auto"  # the first GPU, else the processor
    CPU = "cpu"
    CUDA = "cuda"


class Quantization(StrEnum):
    """Of the frozen weights; the adapter itself is always in full."""

    NONE = "none"
    BITS_8 = "8bit"
    BITS_4 = "4bit"


class Bias(StrEnum):
    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"


class Task(StrEnum):
    """What a row teaches."""

    ANSWER = "answer_from_memory"  # to read: the passages stand in the prompt
    FACTS = "extract_facts"
    SUMMARY = "summarise"
    RECALL = "recall"  # closed book: teaches facts, and costs more than it gives
    RAW = "raw"  # a transcript as it is; known to make a model lie fluently, kept so that the gate can refuse it
    REPLAY = "replay"  # a general request that the base model answers: holds the trained one to it


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained, on what, for how long.

    The default passed the gate on three seeds, with SmolLM2 on the set on which it was chosen (docs/local-model.md).
    """

    r: int = 8  # rank of an adapter's matrices, 1-256
    alpha: float = 16.0  # they count alpha / r times, above 0
    dropout: float = 0.05  # of what goes into them, 0-0.9
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")  # by the end of their names, or "all-linear" alone
    learning_rate: float = 2e-4  # at its highest
    epochs: float = 2.0  # how often each row is seen; 0: as `max_steps` makes it
    max_steps: int = 24  # of the optimizer, at most; 0: as many as `epochs` makes
    warmup_share: float = 0.1  # of the steps, in which the learning rate rises; then it falls to 0
    batch_size: int = 4  # rows computed at once
    accumulation: int = 1  # batches in a step
    max_grad_norm: float = 1.0  # a longer gradient is shortened to it; 0: never
    precision: Precision = Precision.FP32
    gradient_checkpointing: bool = False  # less memory, a third more time
    bias: Bias = Bias.NONE
    save_steps: int = 8  # between two checkpoints
    save_total_limit: int = 2  # checkpoints that are kept
    patience: int = 3  # looks at the watched loss without a better one, after which training ends; 0: never
    seed: int = 0
    device: Device = Device.AUTO
    quantization: Quantization = Quantization.NONE
    tasks: tuple[Task, ...] = (Task.ANSWER,)
    passages: int = 1  # that stand in the prompt of a question, 1-20; a small model reads one at a time
    replay_share: float = 0.25  # of all rows, 0-0.9
    anchor: float = 30.0  # how much of a general row's drift from the untrained model counts, beside a row's loss
    row_tokens: int = 512  # longer rows are left out

    def __post_init__(self) -> None:
        for name, (low, high) in WHOLE.items():
            check.integer(getattr(self, name), name, low, high)
        for name, (least, most) in NUMBERS.items():
            object.__setattr__(self, name, check.number(getattr(self, name), name, least, most))
        for name, members in CHOICES.items():
            object.__setattr__(self, name, check.choice(getattr(self, name), name, members))
        check.flag(self.gradient_checkpointing, "gradient_checkpointing")
        if not self.epochs and not self.max_steps:
            raise InvalidRequest("epochs and max_steps must not both be 0: then nothing is trained", "max_steps")
        object.__setattr__(self, "target_modules", modules(self.target_modules))
        object.__setattr__(self, "tasks", tasks(self.tasks))

    def as_json(self) -> dict[str, Any]:
        """JSON values, in the order of the fields; `recipe_of` reads them back."""
        return {**asdict(self), "target_modules": list(self.target_modules), "tasks": list(self.tasks)}

    def text(self) -> str:
        return json.dumps(self.as_json())


def known() -> Mapping[str, Recipe]:
    """Recipes by name: the one to use, and three that a gate has to refuse."""
    driven = Recipe(
        r=16, alpha=32.0, target_modules=(ALL_LINEAR,), learning_rate=4e-4, epochs=0.0, max_steps=50, patience=0,
        replay_share=0.0,
    )  # fmt: skip
    return {
        "reading": Recipe(),
        "no-op": Recipe(learning_rate=0.0, max_steps=2, replay_share=0.0),
        "raw-transcript": replace(driven, tasks=(Task.RAW,)),
        "over-trained question-answer": replace(driven, tasks=(Task.RECALL,)),
    }


WHOLE: Mapping[str, tuple[int, int]] = {
    "r": (1, 256),
    "max_steps": (0, 1_000_000),
    "batch_size": (1, 1024),
    "accumulation": (1, 1024),
    "save_steps": (1, 1_000_000),
    "save_total_limit": (1, 1000),
    "patience": (0, 1000),
    "seed": (0, 2**32 - 1),
    "passages": (1, 20),
    "row_tokens": (16, 1_000_000),
}
NUMBERS: Mapping[str, tuple[float, float]] = {
    "alpha": (1e-3, 4096),
    "dropout": (0, 0.9),
    "learning_rate": (0, 1),
    "epochs": (0, 1000),
    "warmup_share": (0, 1),
    "max_grad_norm": (0, 1e6),
    "replay_share": (0, 0.9),
    "anchor": (0, 1000),
}
CHOICES: Mapping[str, type[StrEnum]] = {
    "precision": Precision,
    "bias": Bias,
    "device": Device,
    "quantization": Quantization,
}
ALL_LINEAR = "all-linear"


def recipe_of(given: Mapping[str, Any] | str) -> Recipe:
    """Read a recipe from JSON text or its values; what is not named has its default.

    Raises:
        InvalidRequest: no object, a name that no recipe has, or a value out of its range.
    """
    values = parsed(given) if isinstance(given, str) else given
    known = [field.name for field in fields(Recipe)]
    if unknown := sorted(set(values) - set(known)):
        raise InvalidRequest(f"a recipe has no {unknown[0]!r}; it has {', '.join(known)}", unknown[0])
    return Recipe(**values)


def parsed(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"a recipe must be JSON; it stops being so at character {error.pos + 1}") from error
    if not isinstance(values, dict):
        raise InvalidRequest("a recipe must be a JSON object")
    return values


def modules(value: object) -> tuple[str, ...]:
    """Names of modules; `all-linear` stands alone."""
    named = (value,) if isinstance(value, str) else value
    found = check.texts(named, "target_modules", most=64, most_chars=100)
    if not found or (ALL_LINEAR in found and len(found) > 1):
        raise InvalidRequest(f"target_modules must be names of modules, or {ALL_LINEAR!r} alone", "target_modules")
    return found


def tasks(value: object) -> tuple[Task, ...]:
    named = check.texts((value,) if isinstance(value, str) else value, "tasks", most=len(Task))
    chosen = tuple(check.choice(name, "tasks", Task) for name in dict.fromkeys(named))
    if not chosen or Task.REPLAY in chosen:
        raise InvalidRequest("tasks must name at least one task; replay comes by replay_share", "tasks")
    return chosen
