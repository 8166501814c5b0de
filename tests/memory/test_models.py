"""Models are found by the names that clients use, with windows and prices."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.models import (
    LEARN_SECONDS,
    MOST_NAMES,
    RELATIVE_PRICES,
    ModelOverride,
    ModelTable,
)
from memory.types import Prices

OPENAI = "https://api.openai.com/v1"


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def table() -> ModelTable:
    return ModelTable()


# Names


@pytest.mark.parametrize(
    ("name", "upstream", "window", "encoding"),
    [
        ("gpt-4o", OPENAI, 128_000, "o200k_base"),
        ("gpt-4o-2024-08-06", OPENAI, 128_000, "o200k_base"),
        ("gpt-4o-2099-01-01", OPENAI, 128_000, "o200k_base"),
        ("GPT-4o", OPENAI, 128_000, "o200k_base"),
        ("openai/gpt-4o", OPENAI, 128_000, "o200k_base"),
        ("ft:gpt-4o:acme::a1", OPENAI, 128_000, "o200k_base"),
        ("ft:gpt-3.5-turbo-0125:acme::a1", OPENAI, 16_385, "cl100k_base"),
        ("chatgpt-4o-latest", OPENAI, 128_000, "o200k_base"),
        ("gpt-4.1-mini", OPENAI, 1_047_576, "o200k_base"),
        ("o3-mini", OPENAI, 200_000, "o200k_base"),
        ("o1-mini-2024-09-12", OPENAI, 128_000, "o200k_base"),
        ("gpt-5-mini", OPENAI, 272_000, "o200k_base"),
        ("gpt-4", OPENAI, 8_192, "cl100k_base"),
        ("gpt-4-0314", OPENAI, 8_192, "cl100k_base"),
        ("gpt-4-32k-0613", OPENAI, 32_768, "cl100k_base"),
        ("gpt-4-turbo-preview", OPENAI, 128_000, "cl100k_base"),
        ("gpt-3.5-turbo-0301", OPENAI, 4_096, "cl100k_base"),
        ("claude-3-5-sonnet-20241022", "", 200_000, "cl100k_base"),
        ("claude-3-haiku@20240307", "", 200_000, "cl100k_base"),
        ("claude-sonnet-4-20250514", "", 200_000, "cl100k_base"),
        ("gemini-2.5-pro", "", 1_048_576, "cl100k_base"),
        ("openai/gpt-oss-20b", "https://api.groq.com/openai/v1", 131_072, "o200k_base"),
        ("mistral-large-latest", "https://api.mistral.ai/v1", 262_144, "cl100k_base"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "http://localhost:8000/v1", 32_768, "cl100k_base"),
        ("mistralai/Mistral-7B-Instruct-v0.1", "http://localhost:8000/v1", 8_192, "cl100k_base"),
        ("google/gemma-3-4b-it", "", 131_072, "cl100k_base"),
        ("google/gemma-3-1b-it", "", 32_768, "cl100k_base"),
        ("microsoft/phi-2", "", 2_048, "cl100k_base"),
        ("phi-21", "", None, "cl100k_base"),
        ("my-llama", "http://localhost:8000/v1", None, "cl100k_base"),
        ("text-embedding-3-small", OPENAI, None, "cl100k_base"),
        ("", "http://[", None, "cl100k_base"),
        ("ft:", "", None, "cl100k_base"),
        ("///", "", None, "cl100k_base"),
        ("sample_spec", "", None, "cl100k_base"),
    ],
)
def test_a_model_is_found_by_the_name_a_client_uses(table, name, upstream, window, encoding):
    model = table.find(name, upstream)

    assert (model.name, model.window, model.encoding) == (name, window, encoding)


@given(name=st.text(), upstream=st.text())
def test_any_name_and_upstream_have_an_answer(table, name, upstream):
    assert table.find(name, upstream).name == name


def test_the_price_map_is_read_without_importing_litellm():
    code = (
        "import sys; from memory.models import ModelTable; ModelTable().find('gpt-4o'); print('litellm' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("content", [None, b"", b"[]", b"not json", b'{"gpt-4o": 5}', b"\xff"])
def test_a_broken_price_map_leaves_what_we_know_ourselves(tmp_path, content):
    path = tmp_path / "prices.json"
    if content is not None:
        path.write_bytes(content)
    table = ModelTable(price_map=path)

    assert table.find("gpt-4o").window is None
    assert table.find("claude-3-opus-20240229").window == 200_000


def test_names_that_clients_invent_do_not_pile_up(table):
    for n in range(MOST_NAMES + 50):
        table.find(f"invented-{n}")
    table.find("x" * 10_000_000)

    assert len(table._found) == MOST_NAMES
    assert max(len(name) for name, _ in table._found) < 1_000


# Limits and prices


@pytest.mark.parametrize(
    ("name", "separate"),
    [("gpt-5", True), ("gpt-5-nano-2025-08-07", True), ("gpt-5-chat-latest", False), ("gpt-4o", False), ("o3", False)],
)
def test_only_models_known_for_it_have_an_output_beside_the_window(table, name, separate):
    assert table.find(name).separate_output is separate


def test_prices_are_those_of_the_map(table):
    assert table.find("gpt-4o").prices == Prices(input=2.5e-6, cached=1.25e-6, write=2.5e-6, output=1e-5)
    assert table.find("claude-sonnet-4-5").prices == Prices(input=3e-6, cached=3e-7, write=3.75e-6, output=1.5e-5)


def test_without_a_price_of_cached_input_it_is_that_of_input(table):
    prices = table.find("gpt-4").prices

    assert prices.cached == prices.write == prices.input == 3e-5


def test_unknown_prices_are_none_and_the_relative_ones_are_1_half_and_4(table):
    assert table.find("microsoft/phi-2").prices is None
    assert Prices(input=1.0, cached=0.5, write=1.0, output=4.0) == RELATIVE_PRICES


# Overrides


def test_an_override_changes_what_it_names_and_nothing_else(table):
    overridden = ModelTable({"gpt-4o": ModelOverride(context_window=8_192, cached_usd_per_million=0.5)})
    ours, theirs = overridden.find("gpt-4o"), table.find("gpt-4o")

    assert (ours.window, ours.max_output_tokens, ours.encoding) == (8_192, 16_384, "o200k_base")
    assert ours.prices == Prices(theirs.prices.input, 0.5e-6, theirs.prices.write, theirs.prices.output)


def test_an_override_makes_an_unknown_model_known():
    override = ModelOverride(
        context_window=16_384,
        max_output_tokens=2_048,
        separate_output=True,
        encoding="o200k_base",
        input_usd_per_million=2,
        output_usd_per_million=6,
        cache_seconds=3_600,
    )
    model = ModelTable({"My-Model": override}).find("my-model")

    assert (model.window, model.max_output_tokens, model.separate_output) == (16_384, 2_048, True)
    assert model.encoding == "o200k_base"
    assert model.prices == Prices(2e-6, 2e-6, 2e-6, 6e-6, cache_seconds=3_600)


@pytest.mark.parametrize("name", ["gpt-4o", "openai/gpt-4o", "gpt-4o-2024-08-06", "ft:gpt-4o:acme::a1"])
def test_an_override_holds_for_the_same_model_under_other_names(name):
    assert ModelTable({"gpt-4o": ModelOverride(context_window=4_096)}).find(name).window == 4_096


def test_a_new_price_of_input_is_that_of_cached_input_too():
    prices = ModelTable({"gpt-4o": ModelOverride(input_usd_per_million=0)}).find("gpt-4o").prices

    assert (prices.input, prices.cached, prices.write) == (0, 0, 0)


def test_prices_without_that_of_input_stay_unknown():
    assert ModelTable({"m": ModelOverride(cached_usd_per_million=1)}).find("m").prices is None


# Learning


def test_a_learned_window_serves_its_upstream_alone():
    table = ModelTable()
    table.learn("my-llama", "http://a/v1", 8_192)

    assert table.find("my-llama", "http://a/v1").window == 8_192
    assert table.find("my-llama", "http://b/v1").window is None


def test_the_provider_knows_better_than_the_map_and_the_operator_better_than_both():
    table = ModelTable({"gpt-4": ModelOverride(context_window=6_000)})
    for name in ("gpt-4o", "gpt-4"):
        table.learn(name, OPENAI, 4_096)

    assert table.find("gpt-4o", OPENAI).window == 4_096
    assert table.find("gpt-4", OPENAI).window == 6_000


def test_a_gateway_that_adds_output_to_the_window_of_gpt_5_does_not_mislead():
    table = ModelTable()
    table.learn("gpt-5", OPENAI, 400_000)

    assert table.find("gpt-5", OPENAI).window == 272_000


def test_an_unknown_window_is_asked_for_once_an_hour():
    clock = Clock()
    table = ModelTable(now=clock)

    assert table.wants_learning("my-llama", OPENAI)
    assert not table.wants_learning("my-llama", OPENAI)
    assert table.wants_learning("my-qwen", OPENAI)
    clock.seconds += LEARN_SECONDS
    assert table.wants_learning("my-llama", OPENAI)


def test_a_learned_window_is_asked_for_again_after_an_hour_and_serves_meanwhile():
    clock = Clock()
    table = ModelTable(now=clock)
    table.learn("my-llama", OPENAI, 8_192)

    assert not table.wants_learning("my-llama", OPENAI)
    clock.seconds += LEARN_SECONDS
    assert table.wants_learning("my-llama", OPENAI)
    assert table.find("my-llama", OPENAI).window == 8_192


def test_known_models_are_not_asked_for(table):
    assert not table.wants_learning("gpt-4o", OPENAI)
    assert not ModelTable({"m": ModelOverride(context_window=4_096)}).wants_learning("m", OPENAI)
    assert not table.wants_learning("x" * 1_000, OPENAI)


def test_nonsense_is_not_learned():
    table = ModelTable()
    for window in (0, -1, 12):
        table.learn("my-llama", OPENAI, window)

    assert table.find("my-llama", OPENAI).window is None
