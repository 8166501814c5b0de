"""What providers say of windows: in their lists of models, and where they refuse a prompt that is too long."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from memory.models import tokens

WINDOW_FIELDS = ("max_model_len", "context_window", "context_length", "max_context_length", "max_input_tokens")
MOST_ERROR_BYTES = 64 * 1_024
MOST_ERROR_CHARS = 8_000  # of its texts are looked at
MOST_DEPTH = 12

# Fields that repeat the request: the conversation may speak of context lengths, too.
ECHOES = frozenset({"input", "body", "request", "ctx"})

NO_OVERFLOW_STATUS = frozenset({401, 403, 404, 408, 429})
NO_OVERFLOW = re.compile(r"rate.?limit|tokens per (?:min|day)|too many requests|throttl|quota|string_above_max_length")

# Wordings as seen in providers' answers, lower case. The names say who spoke, not who else might.
OVERFLOW = re.compile(
    r"context_length_exceeded|context_window_exceeded|exceed_context_size"  # OpenAI, Azure, Groq; z.ai; llama.cpp
    r"|maximum (?:context|prompt|model) length"  # OpenAI, vLLM, SGLang, DeepSeek, OpenRouter, Mistral; xAI; vLLM
    r"|exceeds? (?:the |this |its |model's |max |maximum |available )*context|context window exceeds"  # Ollama, MiniMax
    r"|exceeded (?:the )?(?:max |maximum )?context length|exceeded model token limit"  # Ollama; Kimi
    r"|(?:longer|greater) than the (?:model's )?context length|context length is only"  # Together; LM Studio; vLLM
    r"|reduce the length of the (?:messages|input|prompt)"  # Groq, Cerebras
    r"|prompt (?:is )?too long|too long for requested model"  # Anthropic, Fireworks, Ollama; Bedrock
    r"|input tokens exceed|input token count.{0,40}exceeds|token count of.{0,20} exceeds the limit"  # GPT-5; Gemini
    r"|`?inputs`? (?:tokens \+|must have less than)"  # TGI, Hugging Face
    r"|input length should be|maximum allowed input length|configured context size"  # DashScope; Poolside; others
)

NUMBER = r"(\d[\d,]{0,14})"


def numbered(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern.replace("#", NUMBER)) for pattern in patterns)


WINDOWS = numbered(
    r"(?:context|prompt|model) (?:length|window|size)(?: is| of|:)?(?: only)? #",
    r"context (?:length|window|size) \(#",
    r"with # maximum context length",
    r"(?:configured|the) limit of #|model token limit:? #|while limit is #",
    r"maximum number of tokens allowed \(#|maximum allowed input length of #",
    r"must be <= #|must have less than #|should be \[\d+, ?#",
    r"n_ctx: #",
    r" > #",
)
COUNTS = numbered(
    r"(?:prompt|request) (?:contains|has) #(?: input)? tokens|passed # input tokens",  # vLLM's "at least" is no count
    r"(?:input|request|requested tokens) \(#|token count (?:of )?\(?#|input length \(?#|prompt \(length #",
    r"too long: #|exceed context limit: #|given: #|current length is #|\(requested: #",
    r"n_prompt_tokens: #|resulted in #",
)
# Where the parts of a prompt are told, they are added up: those of the answer must not count.
(PARTS,) = numbered(r"# (?:in (?:the messages|the functions|your prompt)|of \w+ input|tokens from the input messages)")


@dataclass(frozen=True, slots=True)
class Overflow:
    """A provider's refusal of a prompt that is too long, with what it said of it."""

    window: int | None  # tokens of the model's window
    counted: int | None  # tokens it counted in the prompt


def windows_in_models_reply(body: bytes) -> dict[str, int]:
    """The windows that a reply to GET /v1/models names, by model id; empty for anything else.

    vLLM says `max_model_len`, Groq `context_window`, OpenRouter and Together `context_length`, Mistral
    `max_context_length`, Anthropic `max_input_tokens`, llama.cpp `meta.n_ctx`, which is what one of its slots has.
    Together sends the list alone.
    """
    reply = decoded(body)
    entries = reply.get("data") if isinstance(reply, dict) else reply
    windows = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(name := entry.get("id"), str):
            meta = entry.get("meta")
            said_windows = [tokens(entry.get(field)) for field in WINDOW_FIELDS]
            said_windows += [tokens(meta.get("n_ctx"))] if isinstance(meta, dict) else []
            if window := next(filter(None, said_windows), None):
                windows[name] = window
    return windows


def overflow_in_error(status: int, body: bytes) -> Overflow | None:
    """What a provider's error says of a prompt that is too long; None if it is about something else.

    Rate limits that count tokens are something else, and so is a body with too many bytes.
    """
    if status < 400 or status in NO_OVERFLOW_STATUS or len(body) > MOST_ERROR_BYTES:
        return None
    error = decoded(body)
    text = " ".join(spoken(error)) if error is not None else body.decode("utf-8", "replace")
    text = text[:MOST_ERROR_CHARS].lower()
    if NO_OVERFLOW.search(text) or not OVERFLOW.search(text):
        return None
    parts = [number(part) for part in PARTS.findall(text)]
    return Overflow(window=stated(WINDOWS, text), counted=sum(parts) or stated(COUNTS, text))


def decoded(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None


def spoken(value: object, key: str = "", depth: int = 0) -> Iterator[str]:
    """The texts of an error, and its numbers with their names: OpenRouter and Ollama put errors into errors."""
    if isinstance(value, str) and value.startswith("{"):
        value = decoded(value.encode("utf-8", "replace")) or value
    if depth > MOST_DEPTH:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ECHOES:
                yield from spoken(inner, name, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from spoken(inner, key, depth + 1)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int):
        yield f"{key}: {value}"


def stated(patterns: Sequence[re.Pattern[str]], text: str) -> int | None:
    """The number that the first fitting pattern finds."""
    for pattern in patterns:
        if match := pattern.search(text):
            return next(number(group) for group in match.groups() if group)
    return None


def number(digits: str) -> int:
    return int(digits.replace(",", ""))
