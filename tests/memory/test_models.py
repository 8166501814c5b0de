"""Models are found by the names that clients use, and providers' own words about windows are understood."""

import subprocess
import sys
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.models import (
    LEARN_SECONDS,
    MOST_NAMES,
    RELATIVE_PRICES,
    ModelOverride,
    ModelTable,
    Overflow,
    overflow_in_error,
    windows_in_models_reply,
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


# What providers say of their models


@pytest.mark.parametrize(
    ("reply", "windows"),
    [
        ({"object": "list", "data": [{"id": "a", "max_model_len": 8_192}, {"id": "b"}]}, {"a": 8_192}),  # vLLM
        ({"data": [{"id": "a", "context_window": 131_072, "max_completion_tokens": 8_192}]}, {"a": 131_072}),  # Groq
        ({"data": [{"id": "x/a", "context_length": 1_000_000}]}, {"x/a": 1_000_000}),  # OpenRouter
        ([{"id": "a", "context_length": 32_768}], {"a": 32_768}),  # Together
        ({"data": [{"id": "a", "max_context_length": 262_144}]}, {"a": 262_144}),  # Mistral
        ({"data": [{"id": "a", "max_model_len": None, "context_length": "many"}, {"id": 5}, 7, None]}, {}),
        ({"data": {"id": "a"}}, {}),
        ({"error": {"message": "no"}}, {}),
        (None, {}),
    ],
)
def test_windows_are_read_from_a_list_of_models(reply, windows):
    assert windows_in_models_reply(msgspec.json.encode(reply)) == windows


@given(body=st.binary(max_size=200))
def test_any_reply_is_read_without_an_error(body):
    assert isinstance(windows_in_models_reply(body), dict)
    assert overflow_in_error(400, body) is None


# What providers say of a prompt that is too long


def said(message: str, **more) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", "param": "messages", **more}}


OVERFLOWS = {
    "OpenAI": (
        said(
            "This model's maximum context length is 4097 tokens. However, your messages resulted in 4294 tokens. "
            "Please reduce the length of the messages.",
            code="context_length_exceeded",
        ),
        (4_097, 4_294),
    ),
    "OpenAI with functions": (
        said(
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 202868 tokens "
            "(202767 in the messages, 101 in the functions). Please reduce the length of the messages or functions."
        ),
        (128_000, 202_868),
    ),
    "OpenAI with max_tokens": (
        said(
            "This model's maximum context length is 4097 tokens. However, you requested 4295 tokens (3245 in the "
            "messages, 1050 in the completion). Please reduce the length of the messages or completion."
        ),
        (4_097, 3_245),
    ),
    "OpenAI, GPT-5": (
        said(
            "Input tokens exceed the configured limit of 272,000 tokens. Your messages resulted in 297,006 tokens. "
            "Please reduce the length of the messages."
        ),
        (272_000, 297_006),
    ),
    "OpenAI, the code alone": (
        said("Your input exceeds the context window of this model.", code="context_length_exceeded"),
        (None, None),
    ),
    "Azure, apostrophe escaped": (
        b'{"error":{"message":"This model\\u0027s maximum context length is 8192 tokens. However, your messages '
        b'resulted in 9000 tokens.","code":"context_length_exceeded"}}',
        (8_192, 9_000),
    ),
    "DeepSeek": (
        said(
            "This model's maximum context length is 131072 tokens. However, you requested 131134 tokens (122942 in "
            "the messages, 8192 in the completion). Please reduce the length of the messages or completion.",
            code="invalid_request_error",
        ),
        (131_072, 122_942),
    ),
    "vLLM": (
        {
            "object": "error",
            "message": "This model's maximum context length is 8192 tokens. However, you requested 64 output tokens "
            "and your prompt contains 10000 input tokens, for a total of 10064 tokens. Please reduce the length of the "
            "input prompt or the number of requested output tokens.",
            "type": "BadRequestError",
            "code": 400,
        },
        (8_192, 10_000),
    ),
    "vLLM, a lower bound is no count": (
        said(
            "This model's maximum context length is 8192 tokens. However, you requested 64 output tokens and your "
            "prompt contains at least 8129 input tokens, for a total of at least 8193 tokens. (parameter=input_tokens)"
        ),
        (8_192, None),
    ),
    "vLLM, input alone": (
        said(
            "You passed 8193 input tokens and requested 1 output tokens. However, the model's context length is only "
            "8192 tokens, resulting in a maximum input length of 8191 tokens."
        ),
        (8_192, 8_193),
    ),
    "vLLM, old": (
        said("The decoder prompt (length 9000) is longer than the maximum model length of 8192."),
        (8_192, 9_000),
    ),
    "SGLang": (
        said(
            "Requested token count exceeds the model's maximum context length of 32768 tokens. You requested a total "
            "of 40000 tokens: 39000 tokens from the input messages and 1000 tokens for the completion."
        ),
        (32_768, 39_000),
    ),
    "Together": (
        said("The input (516368 tokens) is longer than the model's context length (262144 tokens)."),
        (262_144, 516_368),
    ),
    "OpenRouter": (
        said(
            "This endpoint's maximum context length is 131072 tokens. However, you requested about 138956 tokens (7884 "
            "of text input, 131072 in the output). Please reduce the length of either one."
        ),
        (131_072, 7_884),
    ),
    "OpenRouter, the provider's error inside": (
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {
                    "raw": '{"object":"error","message":"This model\'s maximum context length is 16000 tokens. However,'
                    ' you requested 17165 tokens (13069 in the messages, 4096 in the completion)."}',
                    "provider_name": "DeepInfra",
                },
            }
        },
        (16_000, 13_069),
    ),
    "llama.cpp": (
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size. try increasing the context size or enable "
                "context shift",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 14_429,
                "n_ctx": 8_192,
            }
        },
        (8_192, 14_429),
    ),
    "llama.cpp, newer": (
        said("request (41533 tokens) exceeds the available context size (32768 tokens), try increasing it"),
        (32_768, 41_533),
    ),
    "llama-cpp-python": (said("Requested tokens (2285) exceed context window of 2048"), (2_048, 2_285)),
    "Ollama": (said("prompt too long; exceeded max context length by 4096 tokens"), (None, None)),
    "Ollama, a text": ({"error": "the input length exceeds the context length"}, (None, None)),
    "Groq": (
        said("Please reduce the length of the messages or completion.", code="context_length_exceeded"),
        (None, None),
    ),
    "Cerebras": (
        {
            "message": "Please reduce the length of the messages or completion. Current length is 42328 while limit is "
            "40000",
            "code": "context_length_exceeded",
        },
        (40_000, 42_328),
    ),
    "Mistral": (
        {
            "object": "error",
            "message": "Prompt contains 65673 tokens and 0 draft tokens, too large for model with 32768 maximum "
            "context length",
            "type": "invalid_request_prompt",
            "code": "3051",
        },
        (32_768, 65_673),
    ),
    "Anthropic": (
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "prompt is too long: 213462 tokens > 200000 maximum",
            },
        },
        (200_000, 213_462),
    ),
    "Anthropic with max_tokens": (
        said(
            "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length or "
            "`max_tokens` and try again"
        ),
        (200_000, 188_240),
    ),
    "Gemini": (
        [
            {
                "error": {
                    "code": 400,
                    "message": "The input token count (1200293) exceeds the maximum number of tokens allowed "
                    "(1048576).",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        (1_048_576, 1_200_293),
    ),
    "xAI": (
        {
            "code": "invalid-argument",
            "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        },
        (131_072, 537_812),
    ),
    "TGI": (
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3474 `inputs` "
            "tokens and 60 `max_new_tokens`"
        },
        (2_048, 3_474),
    ),
    "Hugging Face": (
        {"error": "Input validation error: `inputs` must have less than 4096 tokens. Given: 4545"},
        (4_096, 4_545),
    ),
    "GitHub Copilot": (said("prompt token count of 145000 exceeds the limit of 128000"), (128_000, 145_000)),
    "Fireworks": (said("The prompt is too long: 131073, model maximum context length: 131071"), (131_071, 131_073)),
    "Kimi": (
        said("Your request exceeded model token limit: 262144 (requested: 300000)"),
        (262_144, 300_000),
    ),
    "DashScope": (said("Range of input length should be [1, 129024]"), (129_024, None)),
    "LM Studio": (
        {"error": "The number of tokens to keep from the initial prompt is greater than the context length"},
        (None, None),
    ),
    "Bedrock": ({"message": "Input is too long for requested model."}, (None, None)),
    "MiniMax": (said("invalid params, context window exceeds limit"), (None, None)),
    "no JSON": (
        b"This model's maximum context length is 2048 tokens. However, you requested 2285 tokens",
        (2_048, None),
    ),
}


@pytest.mark.parametrize("provider", OVERFLOWS)
def test_a_prompt_that_is_too_long_is_recognised_whoever_says_so(provider):
    error, (window, counted) = OVERFLOWS[provider]
    body = error if isinstance(error, bytes) else msgspec.json.encode(error)

    assert overflow_in_error(400, body) == Overflow(window, counted)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, said("Incorrect API key provided")),
        (429, said("Rate limit reached for gpt-4 on tokens per min (TPM): Limit 10000, Requested 12000")),
        (413, said("Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 7123")),
        (429, said("This model's maximum context length is 8192 tokens")),
        (400, said("Throttling error: prompt is too long, please wait")),
        (400, said("max_tokens is too large: 100000. This model supports at most 16384 completion tokens")),
        (400, said("Invalid 'messages[3].content': string too long", code="string_above_max_length")),
        (413, {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds the maximum size"}}),
        (500, said("The server had an error while processing your request")),
        (404, said("The model `gpt-9` does not exist")),
        (422, {"detail": [{"msg": "Field required", "input": {"content": "maximum context length is 8 tokens"}}]}),
        (200, said("This model's maximum context length is 8192 tokens")),
        (400, None),
    ],
)
def test_other_errors_are_not_taken_for_it(status, error):
    assert overflow_in_error(status, msgspec.json.encode(error)) is None


def test_a_huge_or_deep_error_is_left_alone():
    deep = b'{"error":' * 500 + b'"context_length_exceeded"' + b"}" * 500

    assert overflow_in_error(400, b'"' + b"context_length_exceeded " * 100_000 + b'"') is None
    assert overflow_in_error(400, b"[" * 60_000) is None
    assert overflow_in_error(400, deep) is None


@pytest.mark.parametrize("text", ["1" * 60_000, "1," * 30_000, "input token count " * 3_000, "exceeds the " * 5_000])
def test_an_error_made_to_be_slow_is_read_quickly(text):
    """A run of digits took minutes while the expressions were unbounded."""
    started = time.process_time()
    overflow_in_error(400, msgspec.json.encode(said("context_length_exceeded " + text)))

    assert time.process_time() - started < 0.5
