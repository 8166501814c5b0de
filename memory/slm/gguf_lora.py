"""A LoRA adapter of peft as a .gguf file, which is what llama.cpp reads.

The same numbers under other names, and for the architecture `llama` some in another order: there a .gguf file has the
rows of queries and keys so that those stand side by side which the rotary embedding turns together, where transformers
turns the halves of a head. What is added to these rows is ordered likewise.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py and the tensor names of `gguf`.
"""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np
from numpy.typing import NDArray

from memory.slm.adapters import MOST_HEADER_BYTES, TYPES, WEIGHTS, Adapter, BadAdapter, shapes_in
from memory.slm.header import ALIGNMENT, GGUF, STRING, Header

Matrix = NDArray[np.float32]

NONE: Matrix = np.empty((0, 0), np.float32)

VERSION, FLOAT32 = 3, 6  # of the form, and a number's kind in it; a tensor's kind of that name is 0
PROJECTIONS: Mapping[str, str] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ARCHITECTURES = ("llama", "gemma3")  # whose names and orders are known; Mistral and SmolLM2 are `llama`
TURNED: Mapping[str, str] = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}  # of `llama`
MODULE = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<part>\w+\.\w+)")
TENSOR = "base_model.model.{module}.lora_{side}.weight"


def write(adapter: Adapter, base: Header, file: IO[bytes]) -> None:
    """Write an adapter that has been looked at.

    Args:
        base: of the .gguf file that it is to be put on.

    Raises:
        BadAdapter: it changes what that file does not have, has trained biases, or numbers that are none.
    """
    architecture = base.fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BadAdapter(f"adapters of {architecture!r:.50} are not made into .gguf files here, only of {known}")
    tensors = dict(named(adapter, base, matrices(adapter)))
    file.write(head(architecture, adapter.alpha, tensors))
    for matrix in tensors.values():
        file.write(matrix.astype("<f4").tobytes())
        file.write(b"\0" * (-matrix.nbytes % ALIGNMENT))


def named(adapter: Adapter, base: Header, held: Mapping[str, Matrix]) -> Iterator[tuple[str, Matrix]]:
    """The matrices as llama.cpp names and orders them: A (rank, width in), B (width out, rank).

    Raises:
        BadAdapter: the base has no such weight, or of another size.
    """
    for module in adapter.modules:
        found = MODULE.fullmatch(module)
        part = PROJECTIONS.get(found["part"]) if found else None
        name = f"blk.{found['layer']}.{part}.weight" if found and part else ""
        sides = [held.get(TENSOR.format(module=module, side=side)) for side in "AB"]
        down, up = (NONE if side is None or side.ndim != 2 else side for side in sides)
        if base.tensors.get(name) != (down.shape[1], up.shape[0]):
            raise BadAdapter(f"{adapter.folder} changes {module!r:.100}, which the .gguf file does not have so")
        heads = TURNED.get(part or "") if base.fields["general.architecture"] == "llama" else None
        yield f"{name}.lora_a", down
        yield f"{name}.lora_b", turned(up, heads_of(base, heads)) if heads else up


def heads_of(base: Header, name: str) -> int:
    """
    Raises:
        BadAdapter: the file does not say how many there are, or not one number for all layers.
    """
    is_by_layer = f"{base.fields['general.architecture']}.{name}" in base.lengths
    heads = base.of_model(name) or (None if is_by_layer else base.of_model(TURNED["attn_q"]))
    if not heads:
        raise BadAdapter("the .gguf file does not say how many heads all its layers have")
    return heads


def turned(rows: Matrix, heads: int) -> Matrix:
    """Rows in llama.cpp's order: the two halves of each head become neighbours.

    >>> turned(np.arange(8, dtype=np.float32).reshape(8, 1), 2).ravel().tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    count, width = rows.shape
    if count % (2 * heads):
        raise BadAdapter(f"{count} rows are not of {heads} heads")
    return rows.reshape(heads, 2, count // heads // 2, width).swapaxes(1, 2).reshape(count, width)


def matrices(adapter: Adapter) -> dict[str, Matrix]:
    """
    Raises:
        BadAdapter: there are biases among them, or numbers that are none.
    """
    path = adapter.folder / WEIGHTS
    shapes = shapes_in(path, MOST_HEADER_BYTES)
    if any(".lora_" not in name for name in shapes):
        raise BadAdapter(f"{adapter.folder} has trained biases, which llama.cpp does not add; train without")
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            held = {name: matrix(file, header[name]["dtype"], shape) for name, shape in shapes.items()}
    except (OSError, ValueError, KeyError) as error:  # it was changed after it had been looked at
        raise BadAdapter(f"{path} cannot be read: {type(error).__name__}") from error
    if not all(np.isfinite(numbers).all() for numbers in held.values()):
        raise BadAdapter(f"{path} holds numbers that are none")
    return held


def matrix(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> Matrix:
    """The next one of a file of safetensors, whose tensors lie one behind the other.

    Raises:
        ValueError: the file ends before it does.
    """
    read = file.read(math.prod(shape) * TYPES[dtype])
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(read, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(read, "<f4" if dtype == "F32" else "<f2").astype(np.float32).reshape(shape)


def head(architecture: str, alpha: float, tensors: Mapping[str, Matrix]) -> bytes:
    """What stands before the numbers."""
    texts = {"general.type": "adapter", "general.architecture": architecture, "adapter.type": "lora"}
    fields = [text(name) + struct.pack("<I", STRING) + text(value) for name, value in texts.items()]
    fields.append(text("adapter.lora.alpha") + struct.pack("<If", FLOAT32, alpha))
    entries, at = [], 0
    for name, numbers in tensors.items():
        inner, outer = reversed(numbers.shape)
        entries.append(text(name) + struct.pack("<IQQIQ", 2, inner, outer, 0, at))
        at += -(-numbers.nbytes // ALIGNMENT) * ALIGNMENT
    told = GGUF + struct.pack("<IQQ", VERSION, len(entries), len(fields)) + b"".join(fields + entries)
    return told + b"\0" * (-len(told) % ALIGNMENT)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()
