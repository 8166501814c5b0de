"""What a file of weights says of itself, read without running anything: .gguf and .safetensors.

Both begin with a header that tells where each tensor lies. A file that ends before its last tensor was copied in part;
a header beyond 100 MB is an attack (the safetensors library has the same limit).

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and
https://huggingface.co/docs/safetensors/index#format.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from memory.errors import LLMMemoryError

MOST_HEADER_BYTES = 100_000_000
MOST_JSON_BYTES = 10_000_000  # of config.json and its like
GGUF, GGUF_VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32  # bytes, of tensors, where the file says no other
MOST_DIMENSIONS = 16  # of a tensor; llama.cpp knows 4
MOST_ENTRIES = 2_000_000  # fields, tensors, or texts of an array; vocabularies have a quarter of a million
MOST_KEPT_CHARS = 100_000  # of a text in the header; chat templates are of a few thousand
PARTLY = "it was copied in part; copy it again"


class BadWeights(LLMMemoryError):
    """A file of weights cannot be used."""


@dataclass(frozen=True, slots=True)
class Header:
    """Of a .gguf file: its fields, of an array the length, and how many weights it has."""

    fields: Mapping[str, Any]  # numbers, bools and texts
    lengths: Mapping[str, int]
    parameters: int
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # their sides, as ggml counts: innermost first

    def of_model(self, name: str) -> int | None:
        """A number that is kept under the architecture's name."""
        value = self.fields.get(f"{self.fields.get('general.architecture')}.{name}")
        return value if isinstance(value, int) else None


@dataclass(slots=True)
class Reader:
    """Reads little-endian values, never more than a header may have."""

    file: IO[bytes]
    path: Path
    left: int = field(default=MOST_HEADER_BYTES)

    def take(self, count: int) -> bytes:
        self.spend(count)
        data = self.file.read(count)
        if len(data) < count:
            raise BadWeights(f"{self.path} ends within its header: {PARTLY}")
        return data

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise BadWeights(f"{self.path} has a header of more than {MOST_HEADER_BYTES:,} bytes; it is not loaded")

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]

    def count(self) -> int:
        found = int(self.number("Q"))
        if found > MOST_ENTRIES:
            raise BadWeights(f"{self.path} says that {found:,} things are in its header; it is not loaded")
        return found

    def text(self) -> bytes:
        return self.take(self.number("Q"))

    def value(self, kind: int) -> Any:
        """A number, a bool or a text; of an array, which is read over, the length."""
        if kind == STRING:
            return self.text()[:MOST_KEPT_CHARS].decode(errors="replace")
        if kind == ARRAY:
            return self.over_array()
        if kind not in NUMBERS:
            raise BadWeights(f"{self.path} is no .gguf file that we can read: a value is of kind {kind}")
        return self.number(NUMBERS[kind])

    def over_array(self) -> int:
        kind, count = self.number("I"), self.count()
        if kind in NUMBERS:
            self.take(count * struct.calcsize(NUMBERS[kind]))
        elif kind == STRING:
            for _ in range(count):
                self.text()
        else:
            raise BadWeights(f"{self.path} is no .gguf file that we can read: an array is of kind {kind}")
        return count


def gguf_header(path: Path) -> Header:
    """
    Raises:
        BadWeights: it is none, it ends too early, or its header is too large.
    """
    with path.open("rb") as file:
        reader = Reader(file, path)
        version = reader.number("I") if file.read(4) == GGUF else None
        if version not in GGUF_VERSIONS:
            raise BadWeights(f"{path} is no .gguf file of version 2 or 3")
        tensors, count = reader.count(), reader.count()
        fields: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(count):
            name, kind = reader.text().decode(errors="replace"), reader.number("I")
            (lengths if kind == ARRAY else fields)[name] = reader.value(kind)
        shapes: dict[str, tuple[int, ...]] = {}
        parameters = last = 0
        for _ in range(tensors):
            name = reader.text().decode(errors="replace")
            shape = tuple(reader.number("Q") for _ in range(min(reader.number("I"), MOST_DIMENSIONS)))
            reader.number("I")
            shapes[name] = shape
            parameters, last = parameters + math.prod(shape), max(last, reader.number("Q"))
        said = fields.get("general.alignment")
        align = said if isinstance(said, int) and 0 < said <= MOST_HEADER_BYTES else ALIGNMENT
        if tensors and -(-file.tell() // align) * align + last >= os.fstat(file.fileno()).st_size:
            raise BadWeights(f"{path} ends before its last tensor: {PARTLY}")
    return Header(fields, lengths, parameters, shapes)


def safetensors_parameters(path: Path) -> int:
    """How many weights it has.

    Raises:
        BadWeights: it is none, it ends too early, or its header is too large.
    """
    with path.open("rb") as file:
        reader = Reader(file, path)
        size = reader.number("Q")
        header = parsed(path, reader.take(size))
        body = os.fstat(file.fileno()).st_size - file.tell()
    try:
        tensors = [tensor_of(value) for name, value in header.items() if name != "__metadata__"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"{path} has a header that is none of safetensors") from error
    if max((end for _, end in tensors), default=0) > body:
        raise BadWeights(f"{path} ends before its last tensor: {PARTLY}")
    return sum(weights for weights, _ in tensors)


def tensor_of(value: Any) -> tuple[int, int]:
    """How many weights a tensor has, and where it ends.

    Raises:
        KeyError, TypeError, ValueError: that is no entry of a header.
    """
    shape, (_, end) = value["shape"], value["data_offsets"]
    if len(shape) > MOST_DIMENSIONS or not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, end)):
        raise ValueError
    return math.prod(shape), end


def json_object(path: Path) -> dict[str, Any]:
    """
    Raises:
        BadWeights: it is no JSON object, or too large for one of a model's.
    """
    with path.open("rb") as file:
        data = file.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise BadWeights(f"{path} has more than {MOST_JSON_BYTES:,} bytes; it is not read")
    return parsed(path, data)


def parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadWeights(f"{path} has no JSON where it should be") from error
    if not isinstance(value, dict):
        raise BadWeights(f"{path} has no JSON object where it should be")
    return value
