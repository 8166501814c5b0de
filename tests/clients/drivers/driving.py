"""What the drivers in Python share: the talk with the runner, and the words they ask.

A driver runs in its client's own environment, so it knows nothing of this project. The runner writes one line of JSON
for each scenario, `{"scenario", "base_url", "key"}`; the driver answers with `{"result"}`, or `{"broken"}` and a
traceback. Its first line tells what it can do and what not.
"""

import asyncio
import base64
import inspect
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ASKED = json.loads((Path(__file__).parent / "asked.json").read_text())
MODEL, QUESTION, QUESTIONS, TOOL, SCHEMA = (
    ASKED["model"],
    ASKED["question"],
    ASKED["questions"],
    ASKED["tool"],
    ASKED["schema"],
)
REASONING_MODEL, CLAUDE = ASKED["reasoning_model"], ASKED["claude"]
PICTURE = "data:image/png;base64," + ASKED["picture"]
DOCUMENT = "data:application/pdf;base64," + ASKED["document"]
# Readers of pictures stop at its end, so that zeros behind it only make it large.
LARGE = base64.b64encode(base64.b64decode(ASKED["picture"]) + bytes(ASKED["padding_bytes"])).decode()
LARGE_PICTURE = "data:image/png;base64," + LARGE
MORE_HEADERS = {"OpenAI-Beta": "answers=v2", "X-Trace": "a,b"}
MORE_FIELDS = {"top_k": 5, "min_p": None, "provider": {"order": ["a", "b"]}}
MORE_QUERY = {"api-version": "2026-01-01"}


@dataclass(frozen=True)
class At:
    """Where a client is to go, and with which key."""

    base_url: str
    key: str

    @property
    def root(self) -> str:
        """For clients that write `/v1` themselves."""
        return self.base_url.removesuffix("/v1")


def weather(city: str) -> str:
    """Tells the weather of a city."""
    said: str = ASKED["weather"][city]
    return said


def called(arguments: str) -> str:
    """The tool's result for a call's arguments as the model wrote them."""
    return weather(**json.loads(arguments))


def by_threads(ask: Callable[[str], Any]) -> list[Any]:
    """What a client that blocks answers to several questions at once."""
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        return list(threads.map(ask, QUESTIONS))


async def by_tasks(ask: Callable[[str], Awaitable[Any]]) -> list[Any]:
    """What a client that does not block answers to several questions at once."""
    return await asyncio.gather(*map(ask, QUESTIONS))


async def cancelled(read: Callable[[Callable[[str], None]], Coroutine[Any, Any, None]]) -> dict[str, Any]:
    """A task that reads a stream, and is cancelled while it waits for what comes after the last word.

    Args:
        read: reads the stream, and tells each word to the function that it is given.
    """
    words: list[str] = []
    silence = asyncio.Event()

    def hear(word: str) -> None:
        words.append(word)
        if word == ASKED["last_word"]:
            silence.set()

    reading = asyncio.create_task(read(hear))
    await asyncio.wait([reading, asyncio.create_task(silence.wait())], return_when=asyncio.FIRST_COMPLETED)
    reading.cancel()
    (ended,) = await asyncio.gather(reading, return_exceptions=True)
    return {"words": words, "ended": type(ended).__name__}


def told(error: BaseException) -> dict[str, Any]:
    """What a program learns of an error: its class, its parts, and the errors behind it."""
    behind: list[str] = []
    cause = error.__cause__ or error.__context__
    while cause is not None:
        behind.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    parts = {name: getattr(error, name, None) for name in ("status_code", "code", "param", "type", "body")}
    return {"error": type(error).__name__, "message": str(error), "parts": parts, "behind": behind}


def drive(packages: str, scenarios: Mapping[str, Callable[[At], Any]], cannot: Mapping[str, str]) -> None:
    """Answer the runner until it hangs up.

    Args:
        packages: names of those whose versions are told, the client's own first.
        cannot: why the client has no way to do a scenario; goes before `scenarios`, for older versions can less.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value, default=str), file=answers, flush=True)

    versions = {name: version(name) for name in packages.split()}
    able = {name: call for name, call in scenarios.items() if name not in cannot}
    say({"versions": versions, "scenarios": list(able), "cannot": dict(cannot)})
    for line in sys.stdin:
        order = json.loads(line)
        try:
            result = able[order["scenario"]](At(order["base_url"], order["key"]))
            say({"result": asyncio.run(result) if inspect.iscoroutine(result) else result})
        except Exception:
            say({"broken": traceback.format_exc()})
