"""What the registry says of models is what their files say."""

import doctest
from collections import Counter
from typing import Any

import jinja2
import pytest

from memory.slm import registry
from memory.slm.header import gguf_header
from memory.slm.registry import (
    GEMMA_4B,
    GEMMA_270M,
    MISTRAL_7B,
    MODELS,
    PHI_2,
    SMOLLM2,
    TEMPLATES,
    LocalModel,
    find,
    kv_bytes,
    names,
    nearest,
    weight_bytes,
)
from memory.slm.weights import Weights


def test_examples_come_out_as_written() -> None:
    assert doctest.testmod(registry).failed == 0


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_model_is_found_by_name_hub_name_and_alias_in_any_case(model: LocalModel) -> None:
    for name in (model.name, model.hub, *model.aliases):
        assert find(name) == find(name.upper()) == find(f" {name} ") == model


def test_the_names_of_the_issue_are_known() -> None:
    asked = ("microsoft/phi-2", "google/gemma-3-4b-it", "mistralai/Mistral-7B-Instruct", "SmolLM2", "Gemma-3-270M")
    assert [find(name) for name in asked] == [PHI_2, GEMMA_4B, MISTRAL_7B, SMOLLM2, GEMMA_270M]


def test_no_name_means_two_models() -> None:
    assert max(Counter(name for model in MODELS for name in {*names(model)}).values()) == 1


def test_a_name_that_is_nearly_right_is_guessed_and_a_foreign_one_is_not() -> None:
    assert nearest("gemma-3-4b-itt") == "gemma-3-4b-it"
    assert nearest("claude-sonnet") is None


def test_smollm2_is_as_its_file_says(smollm2: Weights) -> None:
    header = gguf_header(smollm2.path)
    says = {name: header.of_model(name) for name in ("context_length", "block_count", "attention.head_count_kv")}
    assert says == {"context_length": 8_192, "block_count": 30, "attention.head_count_kv": 3}
    assert (SMOLLM2.window, SMOLLM2.layers, SMOLLM2.kv_heads) == tuple(says.values())
    assert SMOLLM2.head_size == header.of_model("rope.dimension_count")
    assert SMOLLM2.parameters == header.parameters
    vocabulary, width = header.of_model("vocab_size"), header.of_model("embedding_length")
    assert vocabulary is not None
    assert width is not None
    assert SMOLLM2.embedding_parameters == vocabulary * width
    assert SMOLLM2.template == "inside"
    assert "<|im_start|>" in header.fields["tokenizer.chat_template"]


def test_a_form_in_four_bits_takes_what_the_file_takes(smollm2: Weights) -> None:
    size = smollm2.path.stat().st_size
    assert abs(weight_bytes(SMOLLM2, "q4") - size) < 0.03 * size


def counted(model: Any) -> int:
    return sum({id(weights): weights.numel() for weights in model.parameters()}.values())


def shape(model: LocalModel, heads: int, width: int, inner: int, vocabulary: int) -> dict[str, int]:
    """In the words of transformers."""
    return {
        "num_hidden_layers": model.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": model.kv_heads,
        "hidden_size": width,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
    }


def test_parameters_are_those_of_the_architectures() -> None:
    """Widths and vocabularies are those of the models' config.json; no weights are made."""
    torch = pytest.importorskip("torch")
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        MistralConfig,
        MistralForCausalLM,
        PhiConfig,
        PhiForCausalLM,
    )

    with torch.device("meta"):
        phi = PhiForCausalLM(PhiConfig(**shape(PHI_2, 32, 2_560, 10_240, 51_200)))
        mistral = MistralForCausalLM(
            MistralConfig(**shape(MISTRAL_7B, 32, 4_096, 14_336, 32_768), tie_word_embeddings=False)
        )
        gemma = Gemma3ForCausalLM(Gemma3TextConfig(**shape(GEMMA_4B, 8, 2_560, 10_240, 262_208), head_dim=256))
    assert [counted(model) for model in (phi, mistral, gemma)] == [
        model.parameters for model in (PHI_2, MISTRAL_7B, GEMMA_4B)
    ]
    assert [PHI_2.head_size, MISTRAL_7B.head_size] == [2_560 // 32, 4_096 // 32]


def test_layers_that_slide_keep_a_short_cache() -> None:
    """Gemma-3-4B: 5 of 34 layers see all, 29 the newest 1,024 tokens."""
    a_layer = 2 * 4 * 256 * 2
    assert kv_bytes(GEMMA_4B, 1_000) == 34 * 1_000 * a_layer
    assert kv_bytes(GEMMA_4B, 131_072) == (5 * 131_072 + 29 * 1_024) * a_layer


def test_every_template_is_inside_or_ours_or_none() -> None:
    assert {model.template for model in MODELS} <= {"inside", None, *TEMPLATES}


def test_phi_is_asked_as_its_model_card_says() -> None:
    rendered = jinja2.Environment().from_string(TEMPLATES["instruct"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who keeps the light?"}]
    assert rendered.render(messages=messages, add_generation_prompt=True) == (
        "Be brief.\nInstruct: Who keeps the light?\nOutput:"
    )
    messages.append({"role": "assistant", "content": "Ada."})
    assert rendered.render(messages=messages, add_generation_prompt=False).endswith("?\nOutput: Ada.\n")
