"""A folder in Hugging Face's form, with a model or an adapter: what of it may be loaded.

Only safetensors are: a pickle runs whatever its maker wanted when it is read. No file may lie elsewhere than in the
folder, be it through a link or through a name in an index.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from memory.slm.header import BadWeights, json_object, safetensors_parameters

PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
MOST_FILES = 10_000
INDEX = "model.safetensors.index.json"
WEIGHTS = ".safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any of them will do


def checked_model(folder: Path) -> int:
    """How many weights a model's folder has, all of it looked at.

    Raises:
        BadWeights: something is missing, cut off, or must not be loaded; the message names the file.
    """
    files = checked_files(folder)
    json_object(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise BadWeights(f"{folder} has no tokenizer; copy tokenizer.json there, too")
    if (folder / INDEX).exists():
        parts = indexed(folder)
    else:
        parts = {file for file in files if file.parent == folder and file.suffix == WEIGHTS}
    if missing := sorted(part.name for part in parts if not part.is_file()):
        raise BadWeights(f"{folder} lacks {missing[0]}, which {INDEX} names; copy it there, too")
    return sum(safetensors_parameters(part) for part in sorted(parts))


def checked_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder; those that begin with a dot are nobody's to load.

    Raises:
        BadWeights: one is a pickle, or a link that leads out of the folder.
    """
    files = tuple(within(folder, file) for file in walked(folder))
    for file in files:
        if file.suffix.lower() in PICKLES:
            raise BadWeights(
                f"{file} is a pickle, which can run anything when it is loaded; only safetensors are. Remove it where "
                "safetensors are beside it, else convert it"
            )
    return files


def within(folder: Path, file: Path) -> Path:
    """The same file.

    Raises:
        BadWeights: it is a link that leads out of the folder.
    """
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BadWeights(
            f"{file} is a link that leads out of its folder; put the file itself there, or name its own path"
        )
    return file


def walked(folder: Path) -> Iterator[Path]:
    found = 0
    for place, folders, files in os.walk(folder):  # follows no links
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*files, *(name for name in folders if Path(place, name).is_symlink())):
            found += 1
            if found > MOST_FILES:
                raise BadWeights(f"{folder} has more than {MOST_FILES:,} files; is that a model's folder?")
            if not name.startswith("."):
                yield Path(place, name)


def indexed(folder: Path) -> set[Path]:
    """The files that the index says the weights are in."""
    names = json_object(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadWeights(f"{folder / INDEX} has no weight_map")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(WEIGHTS):
            raise BadWeights(f"{folder / INDEX} names {name!r:.100}, which is no file of safetensors in its folder")
    return {folder / name for name in names.values()}
