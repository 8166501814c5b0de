"""The Agents SDK of OpenAI, over Chat Completions."""

import sys
from pathlib import Path
from typing import Any

from agents import (
    Agent,
    AgentOutputSchema,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import ASKED, MODEL, PICTURE, QUESTION, At, by_tasks, drive, told, weather

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


tell_weather = function_tool(weather)


def agent(at: At, settings: ModelSettings | None = None, query: Any = None, **more: Any) -> Agent[Any]:
    sdk = AsyncOpenAI(base_url=at.base_url, api_key=at.key, default_query=query)
    model = OpenAIChatCompletionsModel(model=MODEL, openai_client=sdk)
    return Agent(name="guide", model=model, model_settings=settings or ModelSettings(), **more)


def seen(run: Any) -> Any:
    """The output, what was said on the way, and the usage."""
    output = run.final_output.model_dump() if isinstance(run.final_output, BaseModel) else run.final_output
    usage = run.context_wrapper.usage
    counts = [usage.requests, usage.input_tokens, usage.output_tokens, usage.total_tokens]
    items = [
        item.raw_item.model_dump() if isinstance(item.raw_item, BaseModel) else item.raw_item for item in run.new_items
    ]
    return {"output": output, "items": items, "usage": counts}


async def ask(at: At, question: Any = QUESTION, **more: Any) -> Any:
    return seen(await Runner.run(agent(at, **more), question))


async def stream(at: At, leave_at: str = "", **more: Any) -> Any:
    """The texts as they came; leaves at a word where one is given."""
    texts: list[str] = []
    run = Runner.run_streamed(agent(at, **more), QUESTION)
    try:
        async for event in run.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                texts.append(event.data.delta)
                if leave_at and leave_at in texts[-1]:
                    run.cancel()
                    break
    except Exception as error:
        return {"text": "".join(texts), "texts": texts, **told(error)}
    return {"text": "".join(texts), "texts": texts, **({} if leave_at else seen(run))}


async def vision(at: At) -> Any:
    parts = [{"type": "input_text", "text": QUESTION}, {"type": "input_image", "image_url": PICTURE, "detail": "low"}]
    return await ask(at, [{"role": "user", "content": parts}])


async def developer(at: At) -> Any:
    return await ask(
        at, [{"role": "developer", "content": ASKED["instructions"]}, {"role": "user", "content": QUESTION}]
    )


async def refused(at: At) -> Any:
    try:
        return await ask(at)
    except Exception as error:
        return told(error)


async def cookies(at: At) -> Any:
    guide = agent(at)
    return [seen(await Runner.run(guide, QUESTION)) for _ in range(2)]


drive(
    "openai-agents openai",
    {
        "plain": ask,
        "stream": stream,
        "stream usage": lambda at: stream(at, settings=ModelSettings(include_usage=True)),
        "tool": lambda at: ask(at, tools=[tell_weather]),
        "two tools": lambda at: ask(at, tools=[tell_weather]),
        "streamed tools": lambda at: stream(at, tools=[tell_weather]),
        "structured": lambda at: ask(at, ASKED["wanted"], output_type=AgentOutputSchema(Person)),
        "vision": vision,
        "logprobs": lambda at: ask(at, settings=ModelSettings(top_logprobs=2)),
        "developer": developer,
        "too long": refused,
        "busy": ask,
        "cut": stream,
        "leave": lambda at: stream(at, leave_at="opens"),
        "parallel": lambda at: by_tasks(lambda question: ask(at, question)),
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, settings=ModelSettings(extra_body={"top_k": 5, "min_p": None})),
        "more query": lambda at: ask(at, query={"api-version": "2026-01-01"}),
        "cookies": cookies,
    },
    cannot={
        "two answers": "asks for one answer only",
        "embeddings": "has no embeddings",
        "models": "does not list models",
    },
)
