"""The Agents SDK of OpenAI over Responses, which it speaks unless told otherwise."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents import (
    Agent,
    AgentOutputSchema,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    WebSearchTool,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import BaseModel

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

set_tracing_disabled(True)


class Person(BaseModel):
    name: str
    age: int


tell_weather = function_tool(weather)
SEALED = ModelSettings(store=False, response_include=["reasoning.encrypted_content"], reasoning=Reasoning(effort="low"))


def agent(at: At, settings: ModelSettings | None = None, model: str = MODEL, **more: Any) -> Agent[Any]:
    sdk = AsyncOpenAI(base_url=at.base_url, api_key=at.key)
    speaking = OpenAIResponsesModel(model=model, openai_client=sdk)
    return Agent(name="guide", model=speaking, model_settings=settings or ModelSettings(), **more)


def plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def seen(run: Any) -> Any:
    """The output, what was said on the way, and the usage."""
    usage = run.context_wrapper.usage
    counts = [usage.requests, usage.input_tokens, usage.output_tokens, usage.total_tokens]
    ids = [answer.response_id for answer in run.raw_responses]
    return {
        "output": plain(run.final_output),
        "items": [plain(item.raw_item) for item in run.new_items],
        "usage": counts,
        "ids": ids,
    }


async def ask(at: At, question: Any = QUESTION, **more: Any) -> Any:
    return seen(await Runner.run(agent(at, **more), question))


async def stream(at: At, leave_at: str = "", **more: Any) -> Any:
    """The events as they came from the model; leaves at a word where one is given."""
    events: list[Any] = []
    run = Runner.run_streamed(agent(at, **more), QUESTION)
    ending = {}
    try:
        async for event in run.stream_events():
            if event.type == "raw_response_event":
                events.append(event.data.model_dump())
                if leave_at and leave_at in str(events[-1].get("delta")):
                    run.cancel()
                    break
    except Exception as error:
        ending = told(error)
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    return {"text": text, "events": events, **ending, **({} if ending or leave_at else seen(run))}


async def with_part(at: At, **part: Any) -> Any:
    return await ask(at, [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}, part]}])


async def developer(at: At) -> Any:
    return await ask(
        at, [{"role": "developer", "content": ASKED["instructions"]}, {"role": "user", "content": QUESTION}]
    )


def refused(call: Callable[[At], Any]) -> Callable[[At], Any]:
    async def run(at: At) -> Any:
        try:
            return await call(at)
        except Exception as error:
            return told(error)

    return run


async def previous(at: At) -> Any:
    guide = agent(at)
    first = await Runner.run(guide, QUESTION)
    last = await Runner.run(guide, "And on Sunday?", previous_response_id=first.last_response_id)
    return [seen(first), seen(last)]


async def cookies(at: At) -> Any:
    guide = agent(at)
    return [seen(await Runner.run(guide, QUESTION)) for _ in range(2)]


drive(
    "openai-agents openai",
    {
        "plain": ask,
        "stream": stream,
        "instructions": lambda at: ask(at, instructions=ASKED["instructions"]),
        "developer": developer,
        "tool": lambda at: ask(at, tools=[tell_weather]),
        "two tools": lambda at: ask(at, tools=[tell_weather]),
        "streamed tools": lambda at: stream(at, tools=[tell_weather]),
        "structured": lambda at: ask(at, ASKED["wanted"], output_type=AgentOutputSchema(Person)),
        "vision": lambda at: with_part(at, type="input_image", image_url=PICTURE, detail="low"),
        "file": lambda at: with_part(at, type="input_file", filename="hours.pdf", file_data=DOCUMENT),
        "reasoning": lambda at: ask(at, settings=SEALED, model=REASONING_MODEL, tools=[tell_weather]),
        "streamed reasoning": lambda at: stream(at, settings=SEALED, model=REASONING_MODEL),
        "refusal": stream,
        "web search": lambda at: ask(at, tools=[WebSearchTool()]),
        "previous": previous,
        "truncation": lambda at: ask(at, settings=ModelSettings(truncation="auto")),
        "incomplete": lambda at: stream(at, settings=ModelSettings(max_tokens=16)),
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
        "more fields": lambda at: ask(at, settings=ModelSettings(extra_body=MORE_FIELDS)),
        "more query": lambda at: ask(at, settings=ModelSettings(extra_query=MORE_QUERY)),
        "more headers": lambda at: ask(at, settings=ModelSettings(extra_headers=MORE_HEADERS)),
        "cookies": cookies,
        "large": lambda at: with_part(at, type="input_image", image_url=LARGE_PICTURE, detail="high"),
    },
    cannot={
        "background": "does not wait for such answers",
        "kept": "does not get, list or delete answers",
        "missing": "does not get answers",
        "count": "does not count tokens",
    },
)
