"""Pydantic AI's agents over AnthropicModel."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ToolOutput, UsageLimits
from pydantic_ai.capabilities import WebSearch
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import (
    ASKED,
    CLAUDE,
    DOCUMENT,
    LARGE_PICTURE,
    MORE_FIELDS,
    MORE_HEADERS,
    MORE_QUERY,
    PICTURE,
    QUESTION,
    At,
    by_tasks,
    drive,
    told,
    weather,
)

THINKING = {"anthropic_thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048}
CACHED = {
    "anthropic_cache_instructions": True,
    "anthropic_cache_messages": True,
    "anthropic_cache_tool_definitions": True,
}


class Person(BaseModel):
    name: str
    age: int


def agent(at: At, model: str = CLAUDE, query: Any = None, **more: Any) -> Agent[None, Any]:
    sdk = AsyncAnthropic(base_url=at.root, api_key=at.key, default_query=query)
    return Agent(AnthropicModel(model, provider=AnthropicProvider(anthropic_client=sdk)), **more)


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
    except Exception as error:
        ending = told(error)
    return {"text": "".join(texts), "texts": texts, "answers": said, **ending}


def refused(call: Callable[[At], Any]) -> Callable[[At], Any]:
    async def run(at: At) -> Any:
        try:
            return await call(at)
        except ContentFilterError as error:  # its body tells the times of this run
            return {"error": type(error).__name__, "message": error.message}
        except Exception as error:
            return told(error)

    return run


async def cookies(at: At) -> Any:
    chat = agent(at)
    return [seen(await chat.run(QUESTION)) for _ in range(2)]


async def count(at: At) -> Any:
    limits = UsageLimits(count_tokens_before_request=True, input_tokens_limit=5000)
    return seen(await agent(at).run(QUESTION, usage_limits=limits))


def of(data: str) -> BinaryContent:
    return BinaryContent.from_data_uri(data)


drive(
    "pydantic-ai-slim anthropic",
    {
        "plain": ask,
        "stream": stream,
        "system": lambda at: ask(at, instructions=ASKED["instructions"]),
        "cached": lambda at: ask(at, settings=CACHED, instructions=ASKED["instructions"], tools=[weather]),
        "tool": lambda at: ask(at, tools=[weather]),
        "two tools": lambda at: ask(at, tools=[weather]),
        "streamed tools": lambda at: stream(at, tools=[weather]),
        "structured": lambda at: ask(at, ASKED["wanted"], output_type=ToolOutput(Person)),
        "vision": lambda at: ask(at, [QUESTION, of(PICTURE)]),
        "document": lambda at: ask(at, [QUESTION, of(DOCUMENT)]),
        "thinking": lambda at: ask(at, settings=THINKING, tools=[weather]),
        "streamed thinking": lambda at: stream(at, settings=THINKING),
        "web search": lambda at: ask(at, capabilities=[WebSearch()]),
        "max tokens": lambda at: stream(at, settings={"max_tokens": 16}),
        "stop sequence": lambda at: ask(at, settings={"stop_sequences": ["NINE"]}),
        "refusal": refused(ask),
        "beta": lambda at: ask(at, settings={"anthropic_betas": ["context-1m-2025-08-07"]}),
        "count": count,
        "too long": refused(ask),
        "unauthorized": refused(ask),
        "missing": refused(lambda at: ask(at, model="claude-3-opus-20240229")),
        "busy": ask,
        "overloaded": ask,
        "down": ask,
        "error event": stream,
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
    },
    cannot={
        "citations": "does not ask for citations",
        "batch": "not by its agents",
        "models": "does not list models",
    },
)
