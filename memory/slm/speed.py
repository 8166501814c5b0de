"""How fast a model answers, measured at its URL: any server that speaks `/v1/completions`."""

import time
from dataclasses import dataclass

import httpx

from memory.errors import ModelError

PROMPT = " ".join(f"Berth {n} is free from {n % 12 + 1} o'clock, and its fee is {3 * n} euros." for n in range(1, 17))
STORY = "The lighthouse keeper climbed the stairs once more and told the children what he had seen:"
ANSWER_TOKENS = 48
MOST_SECONDS = 300.0  # of one answer


@dataclass(frozen=True, slots=True)
class Speed:
    reads: float  # tokens of a prompt in a second
    writes: float  # tokens of an answer in a second


def speed(url: str, model: str) -> Speed:
    """Read a prompt of some 300 tokens, then write an answer; after a first token that warms the engine up.

    Args:
        url: base URL, ending in /v1.

    Raises:
        ModelError: it did not answer, or did not say how many tokens that took.
    """
    with httpx.Client(base_url=url, timeout=MOST_SECONDS) as client:
        completed(client, model, "Hello", 1)
        read, _, reading = completed(client, model, PROMPT, 1)
        _, written, writing = completed(client, model, STORY, ANSWER_TOKENS)
    return Speed(read / reading, written / writing)


def completed(client: httpx.Client, model: str, prompt: str, most_tokens: int) -> tuple[int, int, float]:
    """Tokens in, tokens out, and seconds."""
    body = {"model": model, "prompt": prompt, "max_tokens": most_tokens, "temperature": 0}
    began = time.monotonic()
    try:
        reply = client.post("/completions", json=body)
        seconds = time.monotonic() - began
        usage = reply.raise_for_status().json()["usage"]
        return int(usage["prompt_tokens"]), int(usage["completion_tokens"]), seconds
    except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model at {client.base_url} did not complete a prompt: {type(error).__name__}") from error
