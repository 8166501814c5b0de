"""LangChain's ChatAnthropic."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import (
    ASKED,
    CLAUDE,
    LARGE,
    MORE_FIELDS,
    MORE_HEADERS,
    MORE_QUERY,
    QUESTION,
    QUESTIONS,
    SCHEMA,
    At,
    drive,
    told,
    weather,
)

USER = HumanMessage(QUESTION)
MARK = {"cache_control": {"type": "ephemeral"}}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048}
HOURS = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "Opens at nine. Closes at ten."},
    "title": "Hours",
    "citations": {"enabled": True},
}


@tool("weather")
def tell_weather(city: str) -> str:
    """Tells the weather of a city."""
    return weather(city)


def model(at: At, **settings: Any) -> ChatAnthropic:
    given = {"model": CLAUDE, "base_url": at.root, "api_key": at.key, "max_tokens": 512} | settings
    return ChatAnthropic(**given)


def seen(message: BaseMessage) -> Any:
    """A message as a program sees it; ids that LangChain makes by chance aside."""
    whole = message.model_dump(exclude={"id"})
    return {name: value for name, value in whole.items() if name != "tool_call_chunks"}


def ask(at: At, *messages: Any, **settings: Any) -> Any:
    return seen(model(at, **settings).invoke(list(messages) or [USER]))


def stream(at: At, *messages: Any, leave_at: str = "", **settings: Any) -> Any:
    """The chunks, and the error that ended them, if one did; leaves at a word where one is given."""
    chunks: list[Any] = []
    ending = {}
    running = model(at, **settings).stream(list(messages) or [USER])
    try:
        for chunk in running:
            chunks.append(seen(chunk))
            if leave_at and leave_at in str(chunks[-1]["content"]):
                break
    except Exception as error:
        ending = told(error)
    running.close()
    return {"text": "".join(texts(chunk["content"]) for chunk in chunks), "chunks": chunks, **ending}


def texts(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


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


def asking(*parts: Any) -> HumanMessage:
    return HumanMessage([*parts, {"type": "text", "text": QUESTION}])


def block(kind: str, media: str, data: str) -> Any:
    return {"type": kind, "source": {"type": "base64", "media_type": media, "data": data}}


def cached(at: At) -> Any:
    system = SystemMessage([{"type": "text", "text": ASKED["instructions"], **MARK}])
    return ask(at, system, HumanMessage([{"type": "text", "text": QUESTION, **MARK}]))


def search(at: At) -> Any:
    return seen(model(at).bind_tools([{"type": "web_search_20250305", "name": "web_search"}]).invoke([USER]))


def refused(call: Callable[[At], Any]) -> Callable[[At], Any]:
    def run(at: At) -> Any:
        try:
            return call(at)
        except Exception as error:
            return told(error)

    return run


def cookies(at: At) -> Any:
    chat = model(at)
    return [seen(chat.invoke([USER])) for _ in range(2)]


drive(
    "langchain-anthropic langchain-core anthropic",
    {
        "plain": ask,
        "stream": stream,
        "system": lambda at: ask(at, SystemMessage(ASKED["instructions"]), USER),
        "cached": cached,
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: model(at).with_structured_output(SCHEMA, method="json_schema").invoke(ASKED["wanted"]),
        "vision": lambda at: ask(at, asking(block("image", "image/png", ASKED["picture"]))),
        "document": lambda at: ask(at, asking(block("document", "application/pdf", ASKED["document"]))),
        "citations": lambda at: stream(at, asking(HOURS)),
        "thinking": lambda at: tools(at, **THINKING),
        "streamed thinking": lambda at: stream(at, **THINKING),
        "web search": search,
        "max tokens": lambda at: stream(at, max_tokens=16),
        "stop sequence": lambda at: ask(at, stop=["NINE"]),
        "refusal": ask,
        "beta": lambda at: ask(at, betas=["context-1m-2025-08-07"]),
        "count": lambda at: {"tokens": model(at).get_num_tokens_from_messages([USER])},
        "too long": refused(ask),
        "unauthorized": refused(ask),
        "missing": refused(lambda at: ask(at, model="claude-3-opus-20240229")),
        "busy": ask,
        "overloaded": ask,
        "down": ask,
        "error event": stream,
        "cut": stream,
        "leave": lambda at: stream(at, leave_at="opens"),
        "parallel": lambda at: [seen(said) for said in model(at).batch(QUESTIONS)],
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, model_kwargs={"extra_body": MORE_FIELDS}),
        "more query": lambda at: ask(at, model_kwargs={"extra_query": MORE_QUERY}),
        "more headers": lambda at: ask(at, default_headers=MORE_HEADERS),
        "cookies": cookies,
        "large": lambda at: ask(at, asking(block("image", "image/png", LARGE))),
    },
    cannot={"batch": "has no batches", "models": "does not list models"},
)
