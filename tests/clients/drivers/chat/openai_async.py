"""The SDK of OpenAI for Python, without blocking."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import ASKED, MODEL, PICTURE, QUESTION, SCHEMA, TOOL, At, by_tasks, called, cancelled, drive, told

USER = {"role": "user", "content": QUESTION}
PERSON = {"type": "json_schema", "json_schema": {"name": "Person", "strict": True, "schema": SCHEMA}}


def client(at: At) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=at.base_url, api_key=at.key)


async def ask(at: At, *messages: Any, **more: Any) -> Any:
    async with client(at) as sdk:
        said = await sdk.chat.completions.create(model=MODEL, messages=messages or [USER], **more)
    return said.model_dump()


async def stream(at: At, **more: Any) -> Any:
    """All chunks that came, and the error that ended them, if one did."""
    chunks: list[Any] = []
    ending = {}
    async with client(at) as sdk:
        try:
            async for chunk in await sdk.chat.completions.create(model=MODEL, messages=[USER], stream=True, **more):
                chunks.append(chunk.model_dump())
        except Exception as error:
            ending = told(error)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    return {"text": text, "chunks": chunks, **ending}


async def tools(at: At) -> Any:
    async with client(at) as sdk:
        first = await sdk.chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL])
        said = first.choices[0].message
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": called(call.function.arguments)}
            for call in said.tool_calls
        ]
        last = await sdk.chat.completions.create(model=MODEL, messages=[USER, said, *results], tools=[TOOL])
    return [first.model_dump(), last.model_dump()]


async def streamed_tools(at: At) -> Any:
    """The calls put together from their parts, as programs do."""
    calls: dict[int, dict[str, Any]] = {}
    first = await stream(at, tools=[TOOL])
    for part in (p for c in first["chunks"] if c["choices"] for p in c["choices"][0]["delta"].get("tool_calls") or ()):
        one = calls.setdefault(part["index"], {"id": part["id"], "type": "function", "function": {"arguments": ""}})
        one["function"]["name"] = one["function"].get("name") or part["function"]["name"]
        one["function"]["arguments"] += part["function"]["arguments"] or ""
    said = {"role": "assistant", "content": None, "tool_calls": list(calls.values())}
    results = [
        {"role": "tool", "tool_call_id": one["id"], "content": called(one["function"]["arguments"])}
        for one in calls.values()
    ]
    return [first, await ask(at, USER, said, *results, tools=[TOOL])]


async def vision(at: At) -> Any:
    parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}]
    return await ask(at, {"role": "user", "content": parts})


async def refused(at: At) -> Any:
    try:
        return await ask(at)
    except openai.APIError as error:
        return told(error)


async def leave(at: At) -> Any:
    async def read(hear: Callable[[str], None]) -> None:
        async with client(at) as sdk:
            async for chunk in await sdk.chat.completions.create(model=MODEL, messages=[USER], stream=True):
                hear(chunk.choices[0].delta.content or "")

    return await cancelled(read)


async def parallel(at: At) -> Any:
    """One client for all tasks."""
    async with client(at) as sdk:
        made = await by_tasks(
            lambda question: sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
        )
    return [one.model_dump() for one in made]


async def cookies(at: At) -> Any:
    async with client(at) as sdk:
        made = [await sdk.chat.completions.create(model=MODEL, messages=[USER]) for _ in range(2)]
    return [one.model_dump() for one in made]


async def embeddings(at: At) -> Any:
    async with client(at) as sdk:
        made = await sdk.embeddings.create(model=ASKED["embedding_model"], input=[QUESTION, "Hi."])
    return made.model_dump()


async def models(at: At) -> Any:
    async with client(at) as sdk:
        return [model.model_dump() async for model in sdk.models.list()]


drive(
    "openai pydantic",
    {
        "plain": ask,
        "stream": stream,
        "stream usage": lambda at: stream(at, stream_options={"include_usage": True}),
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: ask(at, {"role": "user", "content": ASKED["wanted"]}, response_format=PERSON),
        "vision": vision,
        "two answers": lambda at: ask(at, n=2),
        "logprobs": lambda at: ask(at, logprobs=True, top_logprobs=2),
        "developer": lambda at: ask(at, {"role": "developer", "content": ASKED["instructions"]}, USER),
        "too long": refused,
        "busy": ask,
        "cut": stream,
        "leave": leave,
        "parallel": parallel,
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, extra_body={"top_k": 5, "min_p": None, "provider": {"order": ["a", "b"]}}),
        "more query": lambda at: ask(at, extra_query={"api-version": "2026-01-01"}),
        "cookies": cookies,
        "embeddings": embeddings,
        "models": models,
    },
    cannot={},
)
