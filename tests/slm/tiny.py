"""A model that computes next to nothing, with the vocabulary and the chat template of a real one.

One layer of random weights: what it says is noise, but its engine counts, refuses, streams and stops as it does for the
real model, in a hundredth of the time.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, WINDOW = 64, 8_192
HEAD = 256  # of a Gemma; transformers takes that for granted in a .gguf file
NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


def tiny(real: Path, path: Path, template: bool = True, window: int = WINDOW) -> Path:
    """Write one to `path`, with the vocabulary of the .gguf file `real`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(window)
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_layer_norm_rms_eps(1e-5)
    words = 0
    for name, value, kinds in vocabulary(real):
        if template or name != "tokenizer.chat_template":
            writer.add_key_value(name, value, *kinds)
        words = len(value) if name == "tokenizer.ggml.tokens" else words
    for name, shape in shapes(words).items():
        writer.add_tensor(name, weights(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary(real: Path) -> list[tuple[str, Any, list[Any]]]:
    """The fields that describe it, as they stand in a file."""
    fields = gguf.GGUFReader(real).fields.values()
    return [(field.name, field.contents(), field.types[:2]) for field in fields if field.name.startswith("tokenizer.")]


def shapes(words: int) -> dict[str, tuple[int, ...]]:
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    norms = ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    layers = {f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in square}
    return {"token_embd.weight": (words, WIDTH), **layers, **dict.fromkeys(norms, (WIDTH,))}


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if "norm" in name:
        return np.ones(shape, np.float32)
    spread = 0.02 if name.startswith("token") else 0.1  # what was said before decides more than the last token
    return np.random.default_rng(0).normal(0, spread, shape).astype(np.float16)


def lora(path: Path) -> Path:
    """An adapter for it, with random weights."""
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(1)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for end, shape in (("a", (4, WIDTH)), ("b", (WIDTH, 4))):
        writer.add_tensor(f"blk.0.attn_v.weight.lora_{end}", rng.normal(0, 1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gemma(real: Path, path: Path) -> Path:
    """One of the architecture of Gemma 3, two layers, two heads that share keys and values, norms that are not 1."""
    writer, rng = gguf.GGUFWriter(path, "gemma3"), np.random.default_rng(2)
    writer.add_context_length(WINDOW)
    writer.add_block_count(2)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(512)
    words = 0
    for name, value, kinds in vocabulary(real):
        writer.add_key_value(name, value, *kinds)
        words = len(value) if name == "tokenizer.ggml.tokens" else words

    def drawn(middle: float, spread: float, *shape: int) -> np.ndarray:
        """Of so few digits that half the precision holds them."""
        return (np.round(rng.normal(middle, spread, shape) * 64) / 64).astype(np.float32)

    writer.add_tensor("token_embd.weight", drawn(0, 0.3, words, WIDTH))
    writer.add_tensor("output_norm.weight", drawn(1, 0.1, WIDTH))
    for layer in range(2):
        for name, rows in {"q": 2 * HEAD, "k": HEAD, "v": HEAD}.items():
            writer.add_tensor(f"blk.{layer}.attn_{name}.weight", drawn(0, 0.2, rows, WIDTH))
        writer.add_tensor(f"blk.{layer}.attn_output.weight", drawn(0, 0.1, WIDTH, 2 * HEAD))
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", drawn(0, 0.2, WIDTH, WIDTH))
        for name, side in {"attn_q_norm": HEAD, "attn_k_norm": HEAD, **dict.fromkeys(NORMS, WIDTH)}.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", drawn(1, 0.1, side))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
