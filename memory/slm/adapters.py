"""Adapters on disk: immutable folders, written whole or not at all, and looked at before anything loads them.

    <home>/<tenant>/<hash of the base>/<number>/adapter_model.safetensors, adapter_config.json, meta.json

A folder is data from somewhere until it is checked: nothing in it is run, no file leads out of it, its header is small,
and each of its matrices fits a module of the base. Who loads one takes rank, alpha and modules from `Adapter`, never
the file's other words.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory.errors import InvalidRequest
from memory.slm.folder import checked_files
from memory.slm.header import BadWeights, json_object

WEIGHTS, CONFIG, META = "adapter_model.safetensors", "adapter_config.json", "meta.json"
MOST_HEADER_BYTES = 10 * 2**20  # of an adapter; a rank-8 one of a 7B model has 50 KB
MOST_RANK = 256
TYPES = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a tenant's folder, and of a base's
NUMBERED = re.compile(r"[1-9][0-9]{0,8}")
MATRIX = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<side>[AB])\.weight")
BIAS = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.bias")
BIASES = ("none", "all", "lora_only")

Shapes = Mapping[str, tuple[int, ...]]  # tensor -> shape


class BadAdapter(BadWeights):
    """A folder cannot be loaded as an adapter."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder that has been looked at."""

    folder: Path
    r: int
    alpha: float
    modules: tuple[str, ...]  # full names in the base
    bias: str
    meta: Mapping[str, Any]  # of what it was made: base, data, seed, recipe, scores


@dataclass(frozen=True, slots=True)
class Foundation:
    """What an adapter has to fit: the base model's hash, and the shapes of its tensors."""

    hash: str
    shapes: Shapes


def foundation_of(folder: Path, quantization: str = "none") -> Foundation:
    """The base model in a folder; reads every byte of its weights once.

    Args:
        quantization: a model in 4 bits is another one than in 16: its adapters do not fit.

    Raises:
        BadWeights: it is no model's folder.
    """
    parts = sorted(folder.glob("*.safetensors"))
    if not parts:
        raise BadWeights(f"{folder} has no safetensors")
    digest = hashlib.sha256(quantization.encode())
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        shapes |= shapes_in(part, most_header_bytes=100 * 2**20)
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return Foundation(digest.hexdigest()[:32], shapes)


def open_adapter(folder: Path, base: Foundation) -> Adapter:
    """Look at a folder, without loading it.

    Raises:
        BadAdapter: it must not be loaded onto this base; the message says why.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise BadAdapter(f"there is no adapter in {folder}")
    for path in checked_files(folder):
        if path.is_symlink() or not path.is_file():
            raise BadAdapter(f"{path} is no plain file, and an adapter has nothing else")
    config, meta = object_in(folder / CONFIG), object_in(folder / META)
    if meta.get("base_hash") != base.hash:
        raise BadAdapter(f"{folder} was trained on another base model, or on another form of it; train it anew")
    r, alpha, bias = settings_in(folder, config)
    modules = fitting(folder, shapes_in(folder / WEIGHTS, MOST_HEADER_BYTES), base.shapes, r, bias)
    return Adapter(folder, r, alpha, modules, bias, meta)


def object_in(path: Path) -> dict[str, Any]:
    try:
        return json_object(path)
    except OSError as error:
        raise BadAdapter(f"{path} cannot be read: {type(error).__name__}") from error
    except BadWeights as error:
        raise BadAdapter(str(error)) from error


def settings_in(folder: Path, config: Mapping[str, Any]) -> tuple[int, float, str]:
    """Rank, alpha and bias; the only words of a configuration that anybody heeds."""
    r, alpha, bias = config.get("r"), config.get("lora_alpha"), config.get("bias", "none")
    if config.get("peft_type") != "LORA":
        raise BadAdapter(f"{folder / CONFIG} is not of a LoRA adapter")
    if type(r) is not int or not 1 <= r <= MOST_RANK:
        raise BadAdapter(f"{folder / CONFIG} has no rank of 1 to {MOST_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        raise BadAdapter(f"{folder / CONFIG} has no lora_alpha above 0")
    if bias not in BIASES:
        raise BadAdapter(f"{folder / CONFIG} has a bias that is none of {', '.join(BIASES)}")
    for name in OTHER_WAYS:
        if config.get(name):
            raise BadAdapter(f"{folder / CONFIG} sets {name}, which we do not load")
    return r, float(alpha), bias


# Ways of peft to compute otherwise than by two matrices, or to run code of the file's choosing.
OTHER_WAYS = (
    "auto_mapping", "alora_invocation_tokens", "alpha_pattern", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "layer_replication", "loftq_config", "lora_bias", "megatron_config", "modules_to_save",
    "rank_pattern", "target_parameters", "trainable_token_indices", "use_dora", "use_qalora", "use_rslora",
)  # fmt: skip


def shapes_in(path: Path, most_header_bytes: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file by its header, each where the file has room for it.

    Raises:
        BadAdapter: the header is too large, is none, or promises what the file does not hold.
    """
    try:
        with path.open("rb") as file:
            room = os.fstat(file.fileno()).st_size - 8
            size = int.from_bytes(file.read(8), "little")
            if size > most_header_bytes:
                raise BadAdapter(f"{path} has a header of {size:,} bytes; more than {most_header_bytes:,} is not read")
            if size > room:
                raise BadAdapter(f"{path} ends within its header")
            header = json.loads(file.read(size))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return dict(placed(path, tensors, room - size))
    except OSError as error:
        raise BadAdapter(f"{path} cannot be read: {type(error).__name__}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadAdapter(f"{path} is no file of safetensors") from error


def placed(path: Path, tensors: Mapping[str, Any], room: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors lie one behind the other, without gaps, to the end of the file."""
    at = 0
    for name, entry in sorted(tensors.items(), key=lambda pair: pair[1]["data_offsets"]):
        shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
        width = TYPES[entry["dtype"]]
        if not all(type(side) is int and 0 < side < 2**31 for side in shape) or start != at:
            raise ValueError(name)
        if stop - start != math.prod(shape) * width:
            raise ValueError(name)
        at = stop
        yield name, shape
    if at != room:
        raise BadAdapter(f"{path} is not as long as its header says")


def fitting(folder: Path, shapes: Shapes, base: Shapes, r: int, bias: str) -> tuple[str, ...]:
    """The modules that an adapter changes; each has both matrices, and they fit.

    Raises:
        BadAdapter: a tensor that no adapter of ours has, or that does not fit.
    """
    sides: dict[str, set[str]] = {}
    for name, shape in shapes.items():
        found = MATRIX.fullmatch(name)
        if found is None:
            if bias == "none" or BIAS.fullmatch(name) is None:
                raise BadAdapter(f"{folder / WEIGHTS} holds {name!r:.100}, which is no part of an adapter")
            continue
        module, side = found["module"], found["side"]
        weight = base.get(f"{module}.weight")
        if weight is None or len(weight) != 2:
            raise BadAdapter(f"{folder / WEIGHTS} changes {module!r:.100}, which the base does not have")
        if shape != ((r, weight[1]) if side == "A" else (weight[0], r)):
            raise BadAdapter(f"{folder / WEIGHTS} does not fit {module} of the base with rank {r}")
        sides.setdefault(module, set()).add(side)
    halves = [module for module, found_sides in sides.items() if len(found_sides) < 2]
    if halves or not sides:
        raise BadAdapter(f"{folder / WEIGHTS} lacks a matrix of {halves[0] if halves else 'every module'}")
    return tuple(sorted(sides))


def publish(
    home: Path, tenant: str, base: Foundation, trained: Path, meta: Mapping[str, Any], last: int = 0
) -> Adapter:
    """Give a trained adapter its place, for good; the folder it came from stays as it is.

    Args:
        trained: holds the adapter's two files, as the trainer leaves them.
        meta: data hashes, seed, recipe, scores; the base's hash is added.
        last: number of the tenant's last adapter, also of one that is gone: an engine may still know it by that.

    Raises:
        BadAdapter: it does not fit the base.
        InvalidRequest: the tenant is no name for a folder.
    """
    series = place_of(home, tenant, base)
    series.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=series))
    try:
        for name in (WEIGHTS, CONFIG):
            shutil.copyfile(trained / name, beside / name, follow_symlinks=False)
        text = json.dumps({**meta, "base_hash": base.hash}, indent=1, ensure_ascii=False)
        (beside / META).write_text(text + "\n", encoding="utf-8")
        open_adapter(beside, base)
        for path in beside.iterdir():
            path.chmod(0o444)
        return open_adapter(renamed(beside, series, last), base)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def renamed(beside: Path, series: Path, last: int) -> Path:
    """Take the next free number; two that publish at once get two."""
    while True:
        place = series / str(max(last, *(int(path.name) for path in numbered(series)), 0) + 1)
        try:
            beside.rename(place)
        except OSError:  # somebody was quicker: a folder that holds files is not replaced
            if not place.exists():
                raise
        else:
            return place


def place_of(home: Path, tenant: str, base: Foundation) -> Path:
    if not NAME.fullmatch(tenant):
        raise InvalidRequest("tenant must be letters, digits, - and _, 64 at most", "tenant")
    return home / tenant / base.hash


def published(home: Path, tenant: str, base: Foundation) -> tuple[Path, ...]:
    """The tenant's adapters of this base, oldest first."""
    return tuple(numbered(place_of(home, tenant, base)))


def numbered(series: Path) -> list[Path]:
    there = series.iterdir() if series.is_dir() else iter(())
    return sorted((path for path in there if NUMBERED.fullmatch(path.name)), key=lambda path: int(path.name))


def remove(adapter: Path) -> None:
    """Delete a folder that `published` names: a quarantined conversation is in it, or it has been superseded."""
    shutil.rmtree(adapter, ignore_errors=True)
