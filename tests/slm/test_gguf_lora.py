"""Adapters as .gguf files: llama.cpp computes with them what transformers computes with the same adapter."""

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from memory.settings import Learning, Slm
from memory.slm.adapters import CONFIG, WEIGHTS, Adapter, BadAdapter, Foundation, foundation_of, open_adapter
from memory.slm.adapting import adapting
from memory.slm.carried import put_on
from memory.slm.convert import FOLDER, converted, sha256, write_weights
from memory.slm.gguf_lora import write
from memory.slm.header import gguf_header
from memory.slm.naming import adapter_name
from memory.slm.weights import Weights
from tests.slm.engines import running, url_of
from tests.slm.lora import published
from tests.slm.tiny import gemma

pytestmark = pytest.mark.filterwarnings("default")  # torch and its kin warn of themselves

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT = [504, 3, 281, 1_250, 28, 665, 436, 253, 2_966, 1_180, 5_671, 617]  # tokens; which words they are is no matter
Probabilities = Any  # of the next token, by its number


def by_llama_cpp(weights: Weights, home: Path, place: Path, adapter: Adapter) -> list[Probabilities]:
    """Bare, with the adapter, and bare again."""
    with running(weights, home, adapters=place / "adapters") as engine:
        name = adapter_name(engine.name, 1, b"t")
        slm = Slm(backend="llamacpp", model=engine.name, url=url_of(engine), learning=Learning(enabled=True))
        asyncio.run(adapting(replace(slm, key=engine.key)).load(name, adapter))
        return [next_token(engine.key, url_of(engine), model) for model in (engine.name, name, engine.name)]


def next_token(key: str, url: str, model: str) -> Probabilities:
    asked = {"model": model, "prompt": PROMPT, "max_tokens": 1, "logprobs": 100_000, "temperature": 1}
    answer = httpx.post(f"{url}/completions", json=asked, headers={"authorization": f"Bearer {key}"}, timeout=120)
    (choice,) = answer.json()["choices"]
    told = choice["logprobs"]["content"][0]["top_logprobs"]
    found = np.zeros(max(entry["id"] for entry in told) + 1)
    found[[entry["id"] for entry in told]] = np.exp([entry["logprob"] for entry in told])
    return found


def by_transformers(folder: Path, adapter: Adapter) -> list[Probabilities]:
    """Bare, and with the adapter."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()

    def computed() -> Probabilities:
        with torch.no_grad():
            return torch.softmax(model(torch.tensor([PROMPT])).logits[0, -1].double(), -1).numpy()

    bare = computed()
    put_on(model, None, "one", adapter)
    return [bare, computed()]


def apart(one: Probabilities, other: Probabilities) -> float:
    """Total variation: 0 where all are equal, 1 where nothing likely is shared."""
    return float(np.abs(one - other).sum() / 2)


def test_a_converted_adapter_changes_a_real_model_as_it_does_in_transformers(
    smollm2: Weights, models_home: Path, tmp_path: Path
) -> None:
    folder = converted(smollm2.path, models_home)
    adapter = published(tmp_path, "t", foundation_of(folder), 1, ALL)
    bare, carrying, after = by_llama_cpp(smollm2, models_home, tmp_path, adapter)
    expected = by_transformers(folder, adapter)
    assert apart(bare, carrying) > 0.3
    assert apart(carrying, expected[1]) < 0.1  # the bare models are .03 apart: llama.cpp computes in 8 bits
    assert np.array_equal(bare, after)


def test_a_converted_adapter_changes_a_gemma_as_it_does_in_transformers(smollm2: Weights, tmp_path: Path) -> None:
    """Its rows stand as transformers has them."""
    path, home = gemma(smollm2.path, tmp_path / "gemma.gguf"), tmp_path / "models"
    folder = home / FOLDER / sha256(path)
    write_weights(path, folder)
    adapter = published(tmp_path, "t", foundation_of(folder), 1, ALL)
    weights = Weights(path, "gguf", None, "gemma")
    bare, carrying, after = by_llama_cpp(weights, home, tmp_path, adapter)
    expected = by_transformers(folder, adapter)
    assert apart(bare, carrying) > 0.2
    assert apart(carrying, expected[1]) < 0.01
    assert np.array_equal(bare, after)


# One that llama.cpp would not read so.


def base_of(path: Path) -> Foundation:
    """The shapes of a .gguf file of `tiny`, as its folder has them."""
    shapes = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "ffn_up": "mlp.up_proj"}
    sides = gguf_header(path).tensors
    told = {f"model.layers.0.{ours}.weight": sides[f"blk.0.{theirs}.weight"][::-1] for theirs, ours in shapes.items()}
    return Foundation("0" * 32, {**told, "model.embed_tokens.weight": (100, 64)})


@pytest.fixture
def adapter(tiny_weights: Weights, tmp_path: Path) -> Adapter:
    return published(tmp_path, "t", base_of(tiny_weights.path), 1, ("q_proj", "up_proj"))


def refused(adapter: Adapter, path: Path, **fields: Any) -> str:
    header = gguf_header(path)
    with pytest.raises(BadAdapter) as told:
        write(adapter, replace(header, fields={**header.fields, **fields}), io.BytesIO())
    return str(told.value)


def test_it_is_written_as_gguf_reads_it(adapter: Adapter, tiny_weights: Weights, tmp_path: Path) -> None:
    place = tmp_path / "lora.gguf"
    with place.open("wb") as file:
        write(adapter, gguf_header(tiny_weights.path), file)
    read = gguf.GGUFReader(place)
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert (fields["general.architecture"], fields["adapter.lora.alpha"]) == ("llama", adapter.alpha)
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    ours = load_file(adapter.folder / WEIGHTS)
    up = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    for side in "AB":
        assert np.array_equal(tensors[f"blk.0.ffn_up.weight.lora_{side.lower()}"], ours[up.format(side)].numpy())
    assert len(tensors) == len(ours) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_read_exactly(adapter: Adapter, tiny_weights: Weights, tmp_path: Path, dtype: torch.dtype) -> None:
    header, written = gguf_header(tiny_weights.path), []
    whole = {name: tensor.to(dtype) for name, tensor in load_file(adapter.folder / WEIGHTS).items()}
    for tensors in (whole, {name: tensor.float() for name, tensor in whole.items()}):
        (adapter.folder / WEIGHTS).unlink()
        save_file(tensors, adapter.folder / WEIGHTS)
        file = io.BytesIO()
        write(adapter, header, file)
        written.append(file.getvalue())
    assert written[0] == written[1]


def test_an_architecture_whose_order_is_not_known_is_refused(adapter: Adapter, tiny_weights: Weights) -> None:
    told = refused(adapter, tiny_weights.path, **{"general.architecture": "phi2"})
    assert "adapters of 'phi2' are not made into .gguf files here, only of llama, gemma3" in told


def test_a_file_that_does_not_tell_its_heads_is_refused(adapter: Adapter, tiny_weights: Weights) -> None:
    assert "how many heads" in refused(adapter, tiny_weights.path, **{"llama.attention.head_count": None})
    assert "are not of 7 heads" in refused(adapter, tiny_weights.path, **{"llama.attention.head_count": 7})


def test_heads_that_differ_from_layer_to_layer_are_refused(tiny_weights: Weights, tmp_path: Path) -> None:
    header = gguf_header(tiny_weights.path)
    adapter = published(tmp_path, "t", base_of(tiny_weights.path), 1, ("k_proj",))
    several = "llama.attention.head_count_kv"
    fields = {name: value for name, value in header.fields.items() if name != several}
    by_layer = replace(header, fields=fields, lengths={**header.lengths, several: 2})
    with pytest.raises(BadAdapter, match="how many heads all its layers have"):
        write(adapter, by_layer, io.BytesIO())


def test_what_the_file_does_not_have_is_refused(tiny_weights: Weights, tmp_path: Path) -> None:
    base = base_of(tiny_weights.path)
    adapter = published(tmp_path, "t", base, 1, ("embed_tokens",))
    assert "'model.embed_tokens', which the .gguf file does not have so" in refused(adapter, tiny_weights.path)
    other = replace(base, shapes={"model.layers.0.mlp.up_proj.weight": (64, 32)})
    adapter = published(tmp_path, "u", other, 1, ("up_proj",))
    assert "'model.layers.0.mlp.up_proj', which the .gguf file" in refused(adapter, tiny_weights.path)


def test_trained_biases_are_refused(adapter: Adapter, tiny_weights: Weights, tmp_path: Path) -> None:
    base = base_of(tiny_weights.path)
    for file in adapter.folder.iterdir():
        file.chmod(0o644)
    tensors = load_file(adapter.folder / WEIGHTS)
    save_file({**tensors, "base_model.model.model.layers.0.mlp.up_proj.bias": torch.ones(64)}, adapter.folder / WEIGHTS)
    settings = json.loads((adapter.folder / CONFIG).read_text())
    (adapter.folder / CONFIG).write_text(json.dumps({**settings, "bias": "lora_only"}))
    assert "has trained biases" in refused(open_adapter(adapter.folder, base), tiny_weights.path)


def test_a_file_that_was_changed_after_it_was_looked_at_is_refused(adapter: Adapter, tiny_weights: Weights) -> None:
    (adapter.folder / WEIGHTS).chmod(0o644)
    (adapter.folder / WEIGHTS).write_bytes((adapter.folder / WEIGHTS).read_bytes()[:-4])
    assert "not as long as its header says" in refused(adapter, tiny_weights.path)
