"""LlamaIndex's OpenAI."""

import itertools
import sys
from pathlib import Path
from typing import Any

import httpx
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import ASKED, MODEL, MORE_FIELDS, MORE_QUERY, PICTURE, QUESTION, At, by_threads, drive, told, weather

USER = ChatMessage(role=MessageRole.USER, content=QUESTION)
TOOLS = [FunctionTool.from_defaults(weather)]


class Person(BaseModel):
    name: str
    age: int


def model(at: At, **settings: Any) -> OpenAI:
    return OpenAI(model=MODEL, api_base=at.base_url, api_key=at.key, **settings)


def seen(answer: Any) -> Any:
    """An answer as a program sees it."""
    raw = answer.raw.model_dump() if isinstance(answer.raw, BaseModel) else answer.raw
    return {"message": answer.message.model_dump(), "delta": answer.delta, "raw": raw}


def ask(at: At, *messages: ChatMessage, more: Any = None, **settings: Any) -> Any:
    return seen(model(at, **settings).chat(list(messages) or [USER], **(more or {})))


def stream(at: At, **more: Any) -> Any:
    """The answers as they grew, and the error that ended them, if one did."""
    answers: list[Any] = []
    ending = {}
    try:
        for answer in model(at).stream_chat([USER], **more):
            answers.append(seen(answer))
    except Exception as error:
        ending = told(error)
    return {"text": "".join(answer["delta"] or "" for answer in answers), "answers": answers, **ending}


def results(llm: OpenAI, answer: Any) -> list[ChatMessage]:
    calls = llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
    return [
        ChatMessage(
            role=MessageRole.TOOL,
            content=weather(**call.tool_kwargs),
            additional_kwargs={"tool_call_id": call.tool_id},
        )
        for call in calls
    ]


def tools(at: At) -> Any:
    llm = model(at)
    first = llm.chat_with_tools(TOOLS, chat_history=[USER], allow_parallel_tool_calls=True)
    return [seen(first), ask(at, USER, first.message, *results(llm, first))]


def streamed_tools(at: At) -> Any:
    llm = model(at)
    *_, first = llm.stream_chat_with_tools(TOOLS, chat_history=[USER], allow_parallel_tool_calls=True)
    return [seen(first), ask(at, USER, first.message, *results(llm, first))]


def structured(at: At) -> Any:
    made = model(at).as_structured_llm(Person).chat([ChatMessage(role=MessageRole.USER, content=ASKED["wanted"])])
    return made.raw.model_dump()


def vision(at: At) -> Any:
    blocks = [TextBlock(text=QUESTION), ImageBlock(url=PICTURE, detail="low")]
    return ask(at, ChatMessage(role=MessageRole.USER, blocks=blocks))


def refused(at: At) -> Any:
    try:
        return ask(at)
    except Exception as error:
        return told(error)


def leave(at: At) -> Any:
    """Its streams hold their connection until they are collected as garbage, so the client beneath them is closed."""
    with httpx.Client() as beneath:
        running = model(at, http_client=beneath).stream_chat([USER])
        return [
            seen(answer) for answer in itertools.takewhile(lambda answer: answer.delta != ASKED["last_word"], running)
        ]


def parallel(at: At) -> Any:
    llm = model(at)
    return by_threads(lambda question: seen(llm.chat([ChatMessage(role=MessageRole.USER, content=question)])))


def cookies(at: At) -> Any:
    llm = model(at)
    return [seen(llm.chat([USER])) for _ in range(2)]


drive(
    "llama-index-llms-openai llama-index-core openai",
    {
        "plain": ask,
        "stream": stream,
        "stream usage": lambda at: stream(at, stream_options={"include_usage": True}),
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": structured,
        "vision": vision,
        "logprobs": lambda at: ask(at, logprobs=True, top_logprobs=2),
        "developer": lambda at: ask(at, ChatMessage(role=MessageRole.DEVELOPER, content=ASKED["instructions"]), USER),
        "too long": refused,
        "busy": ask,
        "cut": stream,
        "leave": leave,
        "parallel": parallel,
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, more={"extra_body": MORE_FIELDS}),
        "more query": lambda at: ask(at, more={"extra_query": MORE_QUERY}),
        "cookies": cookies,
    },
    cannot={
        "two answers": "gives one answer only",
        "embeddings": "not in this package",
        "models": "does not list models",
    },
)
