"""Which forms of a model fit into a machine's memory, and with how long a prompt. Arithmetic; nothing is loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from memory.slm.machine import Machine
from memory.slm.registry import Form, LocalModel, kv_bytes, weight_bytes

Runner = Literal["llamacpp", "transformers"]

# What a process has beyond weights and cache. Measured with SmolLM2-135M and Gemma-3-270M, windows of 2,048 to 32,768
# tokens: 81 to 149 MB with xllamacpp 2026.10; 370 to 530 MB with transformers 5.23, most of it torch's libraries.
PROCESS_BYTES: Mapping[Runner, int] = MappingProxyType({"llamacpp": 150 * 10**6, "transformers": 500 * 10**6})
FORMS: tuple[tuple[Runner, Form], ...] = (
    ("llamacpp", "q4"),
    ("llamacpp", "q8"),
    ("transformers", "4bit"),
    ("transformers", "8bit"),
    ("transformers", "bf16"),
    ("transformers", "fp32"),
)
LEAST_WINDOW = 512  # tokens; less is of no use


@dataclass(frozen=True, slots=True)
class Fit:
    engine: Runner
    form: str  # of the registry, or the name of the file that is there
    device: str  # "cpu", or a GPU's name
    weight_bytes: int
    cache_bytes: int  # keys and values of a full window
    needed_bytes: int
    free_bytes: int
    window: int  # tokens that fit, at most those that were asked for; 0: not even the weights do

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes


def each_form(
    model: LocalModel, machine: Machine, window: int, present: tuple[str, int] | None = None
) -> tuple[Fit, ...]:
    """Each form on each device.

    Args:
        window: tokens that the prompt and its answer shall have.
        present: name and bytes of a .gguf file that is there; it stands first.
    """
    sizes: list[tuple[Runner, str, int]] = [("llamacpp", *present)] if present else []
    sizes += [(engine, form, weight_bytes(model, form)) for engine, form in FORMS]
    return tuple(
        fit(model, window, engine, form, size, device, free)
        for engine, form, size in sizes
        for device, free in devices(machine, engine)
    )


def devices(machine: Machine, engine: Runner) -> Iterator[tuple[str, int]]:
    """Name and free bytes; the llama.cpp that we install computes on processors alone."""
    yield "cpu", machine.free_bytes
    if engine == "transformers":
        yield from ((card.name, card.free_bytes) for card in machine.gpus)


def fit(model: LocalModel, window: int, engine: Runner, form: str, size: int, device: str, free: int) -> Fit:
    base, wide = size + PROCESS_BYTES[engine], 2 if form == "fp32" else 1  # the cache is as wide as the weights
    cache = wide * kv_bytes(model, window)
    tokens = most_tokens(model, (free - base) // wide, window)
    return Fit(engine, form, device, size, cache, base + cache, free, tokens)


def most_tokens(model: LocalModel, room: int, window: int) -> int:
    """The longest prompt whose keys and values have room; 0 where it is of no use."""
    low, high = 0, window
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(model, middle) <= room else (low, middle - 1)
    return low if low >= min(LEAST_WINDOW, window) else 0
