"""Engines as tests start them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from memory.slm.engine import Engine, Running, start
from memory.slm.weights import Weights

LONG = "Tell me a story that never ends."


@contextmanager
def running(weights: Weights, home: Path, **how: Any) -> Iterator[Engine]:
    """An engine that is ready; llama.cpp's unless told."""
    engine = start(Running(**{"backend": "llamacpp", "weights": weights, "home": home} | how))
    try:
        yield engine
    finally:
        engine.stop()


def url_of(engine: Engine) -> str:
    assert engine.ready is not None
    return engine.ready.url


def client_of(engine: Engine) -> openai.OpenAI:
    return openai.OpenAI(base_url=url_of(engine), api_key="none", max_retries=0, timeout=120)


def chat(engine: Engine, text: str = "hello", **more: Any) -> httpx.Response:
    """One message, as plain HTTP."""
    body = {"model": "any", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
    return httpx.post(f"{url_of(engine)}/chat/completions", json=body, timeout=120)
