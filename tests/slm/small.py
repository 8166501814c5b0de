"""A model's folder that computes next to nothing: two layers of random weights, a vocabulary of bytes, ChatML."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

SIDE, INNER, LAYERS = 32, 64, 2
MARKS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def small_model(folder: Path, template: str | None = TEMPLATE, **more: Any) -> Path:
    """Write one; `more` goes into its config.json."""
    folder.mkdir(parents=True)
    vocabulary = {mark: place for place, mark in enumerate((*MARKS, *sorted(ByteLevel.alphabet())))}
    write_tokenizer(folder, vocabulary, template)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": SIDE,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": SIDE // 2,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 4_096,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    save_file(weights(len(vocabulary)), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_tokenizer(folder: Path, vocabulary: dict[str, int], template: str | None) -> None:
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), Bytes()
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": MARKS[1], "pad_token": MARKS[1]}
    template_too = {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, **template_too}))


def weights(words: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    tensors = {"model.embed_tokens.weight": drawn(words, SIDE), "model.norm.weight": np.ones(SIDE, np.float32)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        tensors |= {f"{name}.self_attn.{part}_proj.weight": drawn(SIDE, SIDE) for part in "qkvo"}
        tensors |= {f"{name}.mlp.{part}_proj.weight": drawn(INNER, SIDE) for part in ("gate", "up")}
        tensors[f"{name}.mlp.down_proj.weight"] = drawn(SIDE, INNER)
        tensors |= {
            f"{name}.{part}_layernorm.weight": np.ones(SIDE, np.float32) for part in ("input", "post_attention")
        }
    return tensors
