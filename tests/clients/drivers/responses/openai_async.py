"""The SDK of OpenAI for Python over Responses, without blocking."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import (
    ASKED,
    DOCUMENT,
    LARGE_PICTURE,
    MODEL,
    MORE_FIELDS,
    MORE_HEADERS,
    MORE_QUERY,
    PICTURE,
    QUESTION,
    REASONING_MODEL,
    SCHEMA,
    TOOL,
    At,
    by_tasks,
    called,
    cancelled,
    drive,
    told,
)

FUNCTION = {"type": "function", **TOOL["function"]}
PERSON = {"type": "json_schema", "name": "Person", "strict": True, "schema": SCHEMA}
SEALED = {"store": False, "include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}}
ASKING = {"type": "input_text", "text": QUESTION}


def client(at: At) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=at.base_url, api_key=at.key)


async def ask(at: At, given: Any = QUESTION, model: str = MODEL, **more: Any) -> Any:
    async with client(at) as sdk:
        said = await sdk.responses.create(model=model, input=given, **more)
    return said.model_dump()


async def stream(at: At, **more: Any) -> Any:
    """All events that came, and the error that ended them, if one did."""
    events: list[Any] = []
    ending = {}
    async with client(at) as sdk:
        try:
            async for event in await sdk.responses.create(model=MODEL, input=QUESTION, stream=True, **more):
                events.append(event.model_dump())
        except Exception as error:
            ending = told(error)
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    return {"text": text, "events": events, **ending}


def results(output: Any) -> list[Any]:
    return [
        {"type": "function_call_output", "call_id": item.call_id, "output": called(item.arguments)}
        for item in output
        if item.type == "function_call"
    ]


async def tools(at: At, model: str = MODEL, **more: Any) -> Any:
    """The output goes back as the SDK gave it, reasoning included."""
    async with client(at) as sdk:
        first = await sdk.responses.create(model=model, input=QUESTION, tools=[FUNCTION], **more)
        history = [{"role": "user", "content": QUESTION}, *first.output, *results(first.output)]
        last = await sdk.responses.create(model=model, input=history, tools=[FUNCTION], **more)
    return [first.model_dump(), last.model_dump()]


async def streamed_tools(at: At) -> Any:
    """By the SDK's own helper, which puts the calls together."""
    async with client(at) as sdk:
        async with sdk.responses.stream(model=MODEL, input=QUESTION, tools=[FUNCTION]) as running:
            kinds = [event.type async for event in running]
            first = await running.get_final_response()
        calls = [item.model_dump(exclude={"parsed_arguments"}) for item in first.output]
        history = [{"role": "user", "content": QUESTION}, *calls, *results(first.output)]
        last = await sdk.responses.create(model=MODEL, input=history, tools=[FUNCTION])
    return [kinds, first.model_dump(), last.model_dump()]


async def with_part(at: At, **part: Any) -> Any:
    return await ask(at, [{"role": "user", "content": [ASKING, part]}])


def refused(call: Callable[[At], Any]) -> Callable[[At], Any]:
    async def run(at: At) -> Any:
        try:
            return await call(at)
        except openai.APIError as error:
            return told(error)

    return run


async def previous(at: At) -> Any:
    async with client(at) as sdk:
        first = await sdk.responses.create(model=MODEL, input=QUESTION)
        last = await sdk.responses.create(model=MODEL, input="And on Sunday?", previous_response_id=first.id)
    return [first.model_dump(), last.model_dump()]


async def background(at: At) -> Any:
    async with client(at) as sdk:
        queued = await sdk.responses.create(model=MODEL, input=QUESTION, background=True)
        found = await sdk.responses.retrieve(queued.id)
        return [one.model_dump() for one in (queued, found, await sdk.responses.cancel(queued.id))]


async def kept(at: At) -> Any:
    async with client(at) as sdk:
        made = await sdk.responses.create(model=MODEL, input=QUESTION, store=True)
        found = await sdk.responses.retrieve(made.id, include=["message.output_text.logprobs"])
        items = [item.model_dump() async for item in sdk.responses.input_items.list(made.id, limit=5, order="asc")]
        await sdk.responses.delete(made.id)
    return [made.model_dump(), found.model_dump(), items]


async def missing(at: At) -> Any:
    async with client(at) as sdk:
        found = await sdk.responses.retrieve("resp_68f1a0c2")
    return found.model_dump()


async def leave(at: At) -> Any:
    async def read(hear: Callable[[str], None]) -> None:
        async with client(at) as sdk:
            async for event in await sdk.responses.create(model=MODEL, input=QUESTION, stream=True):
                hear(getattr(event, "delta", ""))

    return await cancelled(read)


async def parallel(at: At) -> Any:
    """One client for all tasks."""
    async with client(at) as sdk:
        made = await by_tasks(lambda question: sdk.responses.create(model=MODEL, input=question))
    return [one.model_dump() for one in made]


async def cookies(at: At) -> Any:
    async with client(at) as sdk:
        made = [await sdk.responses.create(model=MODEL, input=QUESTION) for _ in range(2)]
    return [one.model_dump() for one in made]


async def count(at: At) -> Any:
    async with client(at) as sdk:
        counted = await sdk.responses.input_tokens.count(model=MODEL, input=QUESTION)
    return counted.model_dump()


drive(
    "openai pydantic",
    {
        "plain": ask,
        "stream": stream,
        "instructions": lambda at: ask(at, instructions=ASKED["instructions"]),
        "developer": lambda at: ask(
            at, [{"role": "developer", "content": ASKED["instructions"]}, {"role": "user", "content": QUESTION}]
        ),
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: ask(at, ASKED["wanted"], text={"format": PERSON}),
        "vision": lambda at: with_part(at, type="input_image", image_url=PICTURE, detail="low"),
        "file": lambda at: with_part(at, type="input_file", filename="hours.pdf", file_data=DOCUMENT),
        "reasoning": lambda at: tools(at, REASONING_MODEL, **SEALED),
        "streamed reasoning": lambda at: stream(at, reasoning={"effort": "low", "summary": "auto"}),
        "refusal": stream,
        "web search": lambda at: ask(at, tools=[{"type": "web_search"}]),
        "previous": previous,
        "background": background,
        "kept": kept,
        "truncation": lambda at: ask(at, truncation="auto"),
        "incomplete": lambda at: stream(at, max_output_tokens=16),
        "failed": stream,
        "error event": stream,
        "too long": refused(ask),
        "unauthorized": refused(ask),
        "missing": refused(missing),
        "busy": ask,
        "down": ask,
        "cut": stream,
        "leave": leave,
        "parallel": parallel,
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, extra_body=MORE_FIELDS),
        "more query": lambda at: ask(at, extra_query=MORE_QUERY),
        "more headers": lambda at: ask(at, extra_headers=MORE_HEADERS),
        "cookies": cookies,
        "large": lambda at: with_part(at, type="input_image", image_url=LARGE_PICTURE, detail="high"),
        "count": count,
    },
    cannot={},
)
