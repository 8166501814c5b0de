"""The SDK of Anthropic for Python, without blocking."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import (
    ASKED,
    CLAUDE,
    LARGE,
    MORE_FIELDS,
    MORE_HEADERS,
    MORE_QUERY,
    QUESTION,
    SCHEMA,
    TOOL,
    At,
    by_tasks,
    cancelled,
    drive,
    told,
    weather,
)

USER = {"role": "user", "content": QUESTION}
WEATHER = {
    "name": "weather",
    "description": TOOL["function"]["description"],
    "input_schema": TOOL["function"]["parameters"],
}
MARK = {"cache_control": {"type": "ephemeral"}}
LONG_MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048}
PERSON = {"format": {"type": "json_schema", "schema": SCHEMA}}
HOURS = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "Opens at nine. Closes at ten."},
    "title": "Hours",
    "citations": {"enabled": True},
}


def client(at: At) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=at.root, api_key=at.key)


async def made(sdk: anthropic.AsyncAnthropic, *messages: Any, **more: Any) -> Any:
    given = {"model": CLAUDE, "max_tokens": 512, "messages": messages or [USER]} | more
    return await sdk.messages.create(**given)


async def ask(at: At, *messages: Any, **more: Any) -> Any:
    async with client(at) as sdk:
        said = await made(sdk, *messages, **more)
    return said.model_dump()


async def stream(at: At, *messages: Any, **more: Any) -> Any:
    """All events that came, and the error that ended them, if one did."""
    events: list[Any] = []
    ending = {}
    async with client(at) as sdk:
        try:
            async for event in await made(sdk, *messages, stream=True, **more):
                events.append(event.model_dump())
        except Exception as error:
            ending = told(error)
    text = "".join(event["delta"].get("text") or "" for event in events if event["type"] == "content_block_delta")
    return {"text": text, "events": events, **ending}


def results(content: Any) -> dict[str, Any]:
    blocks = [
        {"type": "tool_result", "tool_use_id": block.id, "content": weather(**block.input)}
        for block in content
        if block.type == "tool_use"
    ]
    return {"role": "user", "content": blocks}


async def tools(at: At, **more: Any) -> Any:
    """The content goes back as the SDK gave it, thinking included."""
    async with client(at) as sdk:
        first = await made(sdk, tools=[WEATHER], **more)
        said = {"role": "assistant", "content": first.content}
        last = await made(sdk, USER, said, results(first.content), tools=[WEATHER], **more)
    return [first.model_dump(), last.model_dump()]


async def streamed_tools(at: At) -> Any:
    """By the SDK's own helper, which puts the blocks together."""
    async with client(at) as sdk:
        async with sdk.messages.stream(model=CLAUDE, max_tokens=512, messages=[USER], tools=[WEATHER]) as running:
            kinds = [event.type async for event in running]
            first = await running.get_final_message()
        said = {"role": "assistant", "content": [block.model_dump() for block in first.content]}
        last = await made(sdk, USER, said, results(first.content), tools=[WEATHER])
    return [kinds, first.model_dump(), last.model_dump()]


async def with_block(at: At, kind: str, media: str, data: str) -> Any:
    source = {"type": "base64", "media_type": media, "data": data}
    block = {"type": kind, "source": source}
    return await ask(at, {"role": "user", "content": [block, {"type": "text", "text": QUESTION}]})


async def cached(at: At) -> Any:
    asked = {"role": "user", "content": [{"type": "text", "text": QUESTION, **MARK}]}
    system = [
        {"type": "text", "text": "You are a guide."},
        {"type": "text", "text": ASKED["instructions"], **LONG_MARK},
    ]
    return await ask(at, asked, system=system, tools=[WEATHER | LONG_MARK])


def refused(call: Callable[[At], Any]) -> Callable[[At], Any]:
    async def run(at: At) -> Any:
        try:
            return await call(at)
        except anthropic.APIError as error:
            return told(error) | {"request": getattr(error, "request_id", None)}

    return run


async def beta(at: At) -> Any:
    async with client(at) as sdk:
        asked = await sdk.beta.messages.create(
            model=CLAUDE,
            max_tokens=512,
            messages=[USER],
            betas=["context-1m-2025-08-07", "interleaved-thinking-2025-05-14"],
        )
        return asked.model_dump()


async def count(at: At) -> Any:
    async with client(at) as sdk:
        counted = await sdk.messages.count_tokens(
            model=CLAUDE, messages=[USER], system=ASKED["instructions"], tools=[WEATHER]
        )
    return counted.model_dump()


async def batch(at: At) -> Any:
    one = {"custom_id": "a", "params": {"model": CLAUDE, "max_tokens": 512, "messages": [USER]}}
    async with client(at) as sdk:
        begun = await sdk.messages.batches.create(requests=[one])
        found = await sdk.messages.batches.retrieve(begun.id)
        return [each.model_dump() for each in (begun, found, await sdk.messages.batches.cancel(begun.id))]


async def leave(at: At) -> Any:
    async def read(hear: Callable[[str], None]) -> None:
        async with client(at) as sdk:
            async for event in await made(sdk, stream=True):
                hear(getattr(getattr(event, "delta", None), "text", ""))

    return await cancelled(read)


async def parallel(at: At) -> Any:
    """One client for all tasks."""
    async with client(at) as sdk:
        said = await by_tasks(lambda question: made(sdk, {"role": "user", "content": question}))
    return [one.model_dump() for one in said]


async def cookies(at: At) -> Any:
    async with client(at) as sdk:
        said = [await made(sdk) for _ in range(2)]
    return [one.model_dump() for one in said]


async def models(at: At) -> Any:
    async with client(at) as sdk:
        return [model.model_dump() async for model in sdk.models.list(limit=5)]


drive(
    "anthropic pydantic",
    {
        "plain": ask,
        "stream": stream,
        "system": lambda at: ask(at, system=ASKED["instructions"]),
        "cached": cached,
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: ask(at, {"role": "user", "content": ASKED["wanted"]}, output_config=PERSON),
        "vision": lambda at: with_block(at, "image", "image/png", ASKED["picture"]),
        "document": lambda at: with_block(at, "document", "application/pdf", ASKED["document"]),
        "citations": lambda at: stream(at, {"role": "user", "content": [HOURS, {"type": "text", "text": QUESTION}]}),
        "thinking": lambda at: tools(at, **THINKING),
        "streamed thinking": lambda at: stream(at, **THINKING),
        "web search": lambda at: ask(at, tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}]),
        "max tokens": lambda at: stream(at, max_tokens=16),
        "stop sequence": lambda at: ask(at, stop_sequences=["NINE"]),
        "refusal": ask,
        "beta": beta,
        "count": count,
        "batch": batch,
        "models": models,
        "too long": refused(ask),
        "unauthorized": refused(ask),
        "missing": refused(lambda at: ask(at, model="claude-3-opus-20240229")),
        "busy": ask,
        "overloaded": ask,
        "down": ask,
        "error event": stream,
        "cut": stream,
        "leave": leave,
        "parallel": parallel,
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, extra_body=MORE_FIELDS),
        "more query": lambda at: ask(at, extra_query=MORE_QUERY),
        "more headers": lambda at: ask(at, extra_headers=MORE_HEADERS),
        "cookies": cookies,
        "large": lambda at: with_block(at, "image", "image/png", LARGE),
    },
    cannot={},
)
