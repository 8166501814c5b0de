"""LangChain's ChatOpenAI over Responses."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import (
    ASKED,
    LARGE_PICTURE,
    MODEL,
    MORE_FIELDS,
    MORE_HEADERS,
    MORE_QUERY,
    PICTURE,
    QUESTION,
    QUESTIONS,
    REASONING_MODEL,
    SCHEMA,
    At,
    drive,
    told,
    weather,
)

USER = HumanMessage(QUESTION)
SEALED = {
    "model": REASONING_MODEL,
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"effort": "low", "summary": "auto"},
}


@tool("weather")
def tell_weather(city: str) -> str:
    """Tells the weather of a city."""
    return weather(city)


def model(at: At, **settings: Any) -> ChatOpenAI:
    given = {"model": MODEL, "base_url": at.base_url, "api_key": at.key, "use_responses_api": True} | settings
    return ChatOpenAI(**given)


def seen(message: BaseMessage) -> Any:
    """A message as a program sees it; ids that LangChain makes by chance aside."""
    whole = message.model_dump(exclude={"id"})
    return {name: value for name, value in whole.items() if name != "tool_call_chunks"}


def ask(at: At, *messages: Any, **settings: Any) -> Any:
    return seen(model(at, **settings).invoke(list(messages) or [USER]))


def stream(at: At, leave_at: str = "", **settings: Any) -> Any:
    """The chunks, and the error that ended them, if one did; leaves at a word where one is given."""
    chunks: list[Any] = []
    ending = {}
    running = model(at, **settings).stream([USER])
    try:
        for chunk in running:
            chunks.append(seen(chunk))
            if leave_at and leave_at in str(chunks[-1]["content"]):
                break
    except Exception as error:
        ending = told(error)
    running.close()
    parts = [part for chunk in chunks for part in chunk["content"] if isinstance(part, dict)]
    return {"text": "".join(part.get("text", "") for part in parts), "chunks": chunks, **ending}


def results(said: Any) -> list[ToolMessage]:
    return [ToolMessage(weather(**call["args"]), tool_call_id=call["id"]) for call in said.tool_calls]


def tools(at: At, **settings: Any) -> Any:
    bound = model(at, **settings).bind_tools([tell_weather])
    said = bound.invoke([USER])
    return [seen(said), seen(bound.invoke([USER, said, *results(said)]))]


def streamed_tools(at: At) -> Any:
    bound = model(at).bind_tools([tell_weather])
    first, *rest = bound.stream([USER])
    whole = sum(rest, first)
    return [seen(whole), seen(bound.invoke([USER, whole, *results(whole)]))]


def with_part(at: At, part: Any) -> Any:
    return ask(at, HumanMessage([{"type": "text", "text": QUESTION}, part]))


def document(at: At) -> Any:
    named = {"mime_type": "application/pdf", "filename": "hours.pdf"}
    return with_part(at, {"type": "file", "base64": ASKED["document"], **named})


def refused(call: Callable[[At], Any]) -> Callable[[At], Any]:
    def run(at: At) -> Any:
        try:
            return call(at)
        except Exception as error:
            return told(error)

    return run


def previous(at: At) -> Any:
    chat = model(at)
    first = chat.invoke([USER])
    last = chat.invoke("And on Sunday?", previous_response_id=first.response_metadata["id"])
    return [seen(first), seen(last)]


def cookies(at: At) -> Any:
    chat = model(at)
    return [seen(chat.invoke([USER])) for _ in range(2)]


drive(
    "langchain-openai langchain-core openai",
    {
        "plain": ask,
        "stream": stream,
        "instructions": lambda at: ask(at, model_kwargs={"instructions": ASKED["instructions"]}),
        "developer": lambda at: ask(at, ("developer", ASKED["instructions"]), USER),
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: model(at).with_structured_output(SCHEMA, method="json_schema").invoke(ASKED["wanted"]),
        "vision": lambda at: with_part(at, {"type": "image_url", "image_url": {"url": PICTURE}}),
        "file": document,
        "reasoning": lambda at: tools(at, **SEALED),
        "streamed reasoning": lambda at: stream(at, **SEALED),
        "refusal": stream,
        "web search": lambda at: seen(model(at).bind_tools([{"type": "web_search"}]).invoke([USER])),
        "previous": previous,
        "truncation": lambda at: ask(at, truncation="auto"),
        "incomplete": lambda at: stream(at, max_tokens=16),
        "failed": stream,
        "error event": stream,
        "too long": refused(ask),
        "unauthorized": refused(ask),
        "busy": ask,
        "down": ask,
        "cut": stream,
        "leave": lambda at: stream(at, leave_at="opens"),
        "parallel": lambda at: [seen(said) for said in model(at).batch(QUESTIONS)],
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, extra_body=MORE_FIELDS),
        "more query": lambda at: ask(at, default_query=MORE_QUERY),
        "more headers": lambda at: ask(at, default_headers=MORE_HEADERS),
        "cookies": cookies,
        "large": lambda at: with_part(at, {"type": "image_url", "image_url": {"url": LARGE_PICTURE}}),
    },
    cannot={
        "background": "does not wait for such answers",
        "kept": "does not get, list or delete answers",
        "missing": "does not get answers",
        "count": "does not ask the provider to count",
    },
)
