"""Instructor over OpenAI's SDK: answers and tool calls as models of Pydantic."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import instructor
import openai
from instructor import Mode
from instructor.processing.multimodal import Image
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import ASKED, MODEL, MORE_FIELDS, MORE_QUERY, PICTURE, QUESTION, TOOL, At, by_threads, called, drive, told
from driving import weather as weather_of

USER = {"role": "user", "content": QUESTION}
WANTED = {"role": "user", "content": ASKED["wanted"]}


class Person(BaseModel):
    name: str
    age: int


class weather(BaseModel):  # as the tool is called
    """Tells the weather of a city."""

    city: str


def client(at: At, mode: Mode = Mode.TOOLS) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=at.base_url, api_key=at.key), mode=mode, model=MODEL)


def said(made: Any) -> Any:
    return made.model_dump() if isinstance(made, BaseModel) else made


def ask(at: At, *messages: Any, **more: Any) -> Any:
    """Without a model Instructor gives the SDK's own answer."""
    return said(client(at).create(response_model=None, messages=list(messages) or [USER], **more))


def stream(at: At, leave_at: str = "", **more: Any) -> Any:
    """All chunks that came, and the error that ended them, if one did; leaves at a word where one is given."""
    chunks: list[Any] = []
    ending = {}
    try:
        with client(at).create(response_model=None, messages=[USER], stream=True, **more) as running:
            for chunk in running:
                chunks.append(chunk.model_dump())
                if leave_at and leave_at in str(chunks[-1]["choices"]):
                    break
    except Exception as error:
        ending = told(error)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    return {"text": text, "chunks": chunks, **ending}


def with_results(calls: list[weather], answer: Any) -> list[Any]:
    """The conversation with the calls and what came of them."""
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": weather_of(**model.model_dump())}
        for call, model in zip(answer.tool_calls, calls, strict=True)
    ]
    said_before = {"content": None, **answer.model_dump(exclude_none=True)}  # it wants the key, even for calls alone
    return [USER, said_before, *results]


def tool(at: At) -> Any:
    made, whole = client(at).create_with_completion(response_model=weather, messages=[USER])
    history = with_results([made], whole.choices[0].message)
    return [made.model_dump(), whole.model_dump(), ask(at, *history)]


def two_tools(at: At) -> Any:
    """Instructor gives the models alone, so the answer comes by its hook."""
    answers: list[Any] = []
    parallel_client = client(at, Mode.PARALLEL_TOOLS)
    parallel_client.on("completion:response", answers.append)
    made = list(parallel_client.create(response_model=Iterable[weather], messages=[USER]))
    history = with_results(made, answers[0].choices[0].message)
    return [[one.model_dump() for one in made], answers[0].model_dump(), ask(at, *history)]


def streamed_tools(at: At) -> Any:
    """The calls put together from their parts; of several at once it makes no models in a stream."""
    calls: dict[int, dict[str, Any]] = {}
    first = stream(at, tools=[TOOL])
    for part in (p for c in first["chunks"] if c["choices"] for p in c["choices"][0]["delta"].get("tool_calls") or ()):
        one = calls.setdefault(part["index"], {"id": part["id"], "type": "function", "function": {"arguments": ""}})
        one["function"]["name"] = one["function"].get("name") or part["function"]["name"]
        one["function"]["arguments"] += part["function"]["arguments"] or ""
    said_before = {"role": "assistant", "content": None, "tool_calls": list(calls.values())}
    results = [
        {"role": "tool", "tool_call_id": one["id"], "content": called(one["function"]["arguments"])}
        for one in calls.values()
    ]
    return [first, ask(at, USER, said_before, *results, tools=[TOOL])]


def structured(at: At) -> Any:
    return said(client(at, Mode.JSON_SCHEMA).create(response_model=Person, messages=[WANTED]))


def vision(at: At) -> Any:
    return ask(at, {"role": "user", "content": [QUESTION, Image.from_base64(PICTURE)]})


def refused(at: At) -> Any:
    try:
        return ask(at)
    except Exception as error:
        return told(error)


def parallel(at: At) -> Any:
    one = client(at)
    return by_threads(
        lambda question: said(one.create(response_model=None, messages=[{"role": "user", "content": question}]))
    )


def cookies(at: At) -> Any:
    one = client(at)
    return [said(one.create(response_model=None, messages=[USER])) for _ in range(2)]


drive(
    "instructor openai pydantic",
    {
        "plain": ask,
        "stream": stream,
        "stream usage": lambda at: stream(at, stream_options={"include_usage": True}),
        "tool": tool,
        "two tools": two_tools,
        "streamed tools": streamed_tools,
        "structured": structured,
        "vision": vision,
        "two answers": lambda at: ask(at, n=2),
        "logprobs": lambda at: ask(at, logprobs=True, top_logprobs=2),
        "developer": lambda at: ask(at, {"role": "developer", "content": ASKED["instructions"]}, USER),
        "too long": refused,
        "busy": ask,
        "cut": stream,
        "leave": lambda at: stream(at, leave_at="opens"),
        "parallel": parallel,
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, extra_body=MORE_FIELDS),
        "more query": lambda at: ask(at, extra_query=MORE_QUERY),
        "cookies": cookies,
    },
    cannot={
        "embeddings": "has no embeddings",
        "models": "does not list models",
    },
)
