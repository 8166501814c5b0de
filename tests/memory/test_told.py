"""Providers' own words about windows are understood, and what only sounds like them is not."""

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.told import Overflow, overflow_in_error, windows_in_models_reply

# What providers say of their models


@pytest.mark.parametrize(
    ("reply", "windows"),
    [
        ({"object": "list", "data": [{"id": "a", "max_model_len": 8_192}, {"id": "b"}]}, {"a": 8_192}),  # vLLM
        ({"data": [{"id": "a", "context_window": 131_072, "max_completion_tokens": 8_192}]}, {"a": 131_072}),  # Groq
        ({"data": [{"id": "x/a", "context_length": 1_000_000}]}, {"x/a": 1_000_000}),  # OpenRouter
        ([{"id": "a", "context_length": 32_768}], {"a": 32_768}),  # Together
        ({"data": [{"id": "a", "max_context_length": 262_144}]}, {"a": 262_144}),  # Mistral
        ({"data": [{"id": "a", "meta": {"n_ctx": 2_048, "n_ctx_train": 8_192}}]}, {"a": 2_048}),  # llama.cpp
        ({"data": [{"id": "a", "meta": "n_ctx"}, {"id": "b", "meta": {"n_ctx": None}}]}, {}),
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
