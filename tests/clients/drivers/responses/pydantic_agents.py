"""Pydantic AI's agents over OpenAIResponsesModel."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, UsageLimits
from pydantic_ai.capabilities import WebSearch
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

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
    At,
    by_tasks,
    drive,
    told,
    weather,
)

SEALED = {"openai_store": False, "openai_reasoning_summary": "auto", "openai_reasoning_effort": "low"}


class Person(BaseModel):
    name: str
    age: int


def agent(at: At, model: str = MODEL, query: Any = None, **more: Any) -> Agent[None, Any]:
    sdk = AsyncOpenAI(base_url=at.base_url, api_key=at.key, default_query=query)
    return Agent(OpenAIResponsesModel(model, provider=OpenAIProvider(openai_client=sdk)), **more)


def seen(run: Any) -> Any:
    """The output and the answers."""
    output = run.output.model_dump() if isinstance(run.output, BaseModel) else run.output
    return {"output": output, "answers": answers(run.new_messages())}


def answers(messages: Any) -> Any:
    """Each answer's parts; ids and times that Pydantic AI makes by chance aside."""
    return [
        {
            "parts": [
                [part.part_kind, *(getattr(part, name, None) for name in ("content", "args", "provider_details"))]
                for part in one.parts
            ],
            "usage": str(one.usage),
            "model": one.model_name,
            "id": one.provider_response_id,
            "details": one.provider_details,
        }
        for one in messages
        if one.kind == "response"
    ]


async def ask(at: At, question: Any = QUESTION, settings: Any = None, **more: Any) -> Any:
    return seen(await agent(at, **more).run(question, model_settings=settings))


async def stream(at: At, leave_at: str = "", settings: Any = None, **more: Any) -> Any:
    """The texts as they came; leaves at a word where one is given."""
    texts: list[str] = []
    ending: dict[str, Any] = {}
    said: Any = []
    try:
        async with agent(at, **more).run_stream(QUESTION, model_settings=settings) as run:
            async for text in run.stream_text(delta=True, debounce_by=None):
                texts.append(text)
                if leave_at and leave_at in text:
                    break
            said = answers(run.all_messages())
    except ContentFilterError as error:  # its body tells the times of this run
        ending = {"error": type(error).__name__, "message": error.message}
    except Exception as error:
        ending = told(error)
    return {"text": "".join(texts), "texts": texts, "answers": said, **ending}


def refused(call: Callable[[At], Any]) -> Callable[[At], Any]:
    async def run(at: At) -> Any:
        try:
            return await call(at)
        except Exception as error:
            return told(error)

    return run


async def previous(at: At) -> Any:
    guide = agent(at)
    first = await guide.run(QUESTION)
    named = {"openai_previous_response_id": first.response.provider_response_id}
    return [seen(first), seen(await guide.run("And on Sunday?", model_settings=named))]


async def cookies(at: At) -> Any:
    chat = agent(at)
    return [seen(await chat.run(QUESTION)) for _ in range(2)]


async def search(at: At) -> Any:
    return await ask(at, capabilities=[WebSearch()], settings={"openai_include_raw_annotations": True})


async def count(at: At) -> Any:
    limits = UsageLimits(count_tokens_before_request=True, input_tokens_limit=29)
    return seen(await agent(at).run(QUESTION, usage_limits=limits))


def of(data: str) -> BinaryContent:
    return BinaryContent.from_data_uri(data)


drive(
    "pydantic-ai-slim openai",
    {
        "plain": ask,
        "stream": stream,
        "instructions": lambda at: ask(at, instructions=ASKED["instructions"]),
        "developer": lambda at: ask(at, system_prompt=ASKED["instructions"]),
        "tool": lambda at: ask(at, tools=[weather]),
        "two tools": lambda at: ask(at, tools=[weather]),
        "streamed tools": lambda at: stream(at, tools=[weather]),
        "structured": lambda at: ask(at, ASKED["wanted"], output_type=NativeOutput(Person)),
        "vision": lambda at: ask(at, [QUESTION, of(PICTURE)]),
        "file": lambda at: ask(at, [QUESTION, of(DOCUMENT)]),
        "reasoning": lambda at: ask(at, settings=SEALED, model=REASONING_MODEL, tools=[weather]),
        "streamed reasoning": lambda at: stream(at, settings=SEALED, model=REASONING_MODEL),
        "refusal": stream,
        "web search": search,
        "previous": previous,
        "truncation": lambda at: ask(at, settings={"openai_truncation": "auto"}),
        "incomplete": lambda at: stream(at, settings={"max_tokens": 16}),
        "failed": stream,
        "error event": stream,
        "too long": refused(ask),
        "unauthorized": refused(ask),
        "busy": ask,
        "down": ask,
        "cut": stream,
        "leave": lambda at: stream(at, leave_at="opens"),
        "parallel": lambda at: by_tasks(lambda question: ask(at, question)),
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, settings={"extra_body": MORE_FIELDS}),
        "more query": lambda at: ask(at, query=MORE_QUERY),
        "more headers": lambda at: ask(at, settings={"extra_headers": MORE_HEADERS}),
        "cookies": cookies,
        "large": lambda at: ask(at, [QUESTION, of(LARGE_PICTURE)]),
        "count": count,
    },
    cannot={
        "background": "waits for such answers, and has no way to cancel them",
        "kept": "does not get, list or delete answers",
        "missing": "does not get answers",
    },
)
