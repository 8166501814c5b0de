"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

import sys
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import ASKED, MODEL, PICTURE, QUESTION, QUESTIONS, SCHEMA, At, drive, told, weather

USER = HumanMessage(QUESTION)


@tool("weather")
def tell_weather(city: str) -> str:
    """Tells the weather of a city."""
    return weather(city)


def model(at: At, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model=MODEL, base_url=at.base_url, api_key=at.key, **settings)


def seen(message: BaseMessage) -> Any:
    """A message as a program sees it; ids that LangChain makes by chance aside."""
    whole = message.model_dump(exclude={"id"})
    return {name: value for name, value in whole.items() if name != "tool_call_chunks"}


def ask(at: At, *messages: Any, **settings: Any) -> Any:
    return seen(model(at, **settings).invoke(list(messages) or [USER]))


def stream(at: At, leave_at: str = "", **settings: Any) -> Any:
    """The chunks' texts, their sum, and the error that ended them, if one did; leaves at a word where one is given."""
    chunks: list[Any] = []
    ending = {}
    running = model(at, **settings).stream([USER])
    try:
        for chunk in running:
            chunks.append(chunk)
            if leave_at and leave_at in str(chunk.content):
                break
    except Exception as error:
        ending = told(error)
    running.close()
    texts = [chunk.content for chunk in chunks]
    usage = [chunk.usage_metadata for chunk in chunks]
    return {"text": "".join(texts), "texts": texts, "usage": usage, **ending}


def results(said: Any) -> list[ToolMessage]:
    return [ToolMessage(weather(**call["args"]), tool_call_id=call["id"]) for call in said.tool_calls]


def tools(at: At) -> Any:
    bound = model(at).bind_tools([tell_weather])
    said = bound.invoke([USER])
    return [seen(said), seen(bound.invoke([USER, said, *results(said)]))]


def streamed_tools(at: At) -> Any:
    bound = model(at).bind_tools([tell_weather])
    first, *rest = bound.stream([USER])
    whole = sum(rest, first)
    said = AIMessage(content=whole.content, tool_calls=whole.tool_calls)
    return [seen(whole), seen(bound.invoke([USER, said, *results(said)]))]


def vision(at: At) -> Any:
    parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    return ask(at, HumanMessage(parts))


def refused(at: At) -> Any:
    try:
        return ask(at)
    except Exception as error:
        return told(error)


def cookies(at: At) -> Any:
    chat = model(at)
    return [seen(chat.invoke([USER])) for _ in range(2)]


def two_answers(at: At) -> Any:
    made = model(at, n=2).generate([[USER]])
    return [seen(one.message) for one in made.generations[0]]


def embeddings(at: At) -> Any:
    embedder = OpenAIEmbeddings(
        model=ASKED["embedding_model"], base_url=at.base_url, api_key=at.key, check_embedding_ctx_length=False
    )
    return embedder.embed_documents([QUESTION, "Hi."])


drive(
    "langchain-openai langchain-core openai",
    {
        "plain": ask,
        "stream": stream,
        "stream usage": lambda at: stream(at, stream_usage=True),
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: model(at).with_structured_output(SCHEMA, method="json_schema").invoke(ASKED["wanted"]),
        "vision": vision,
        "two answers": two_answers,
        "logprobs": lambda at: ask(at, logprobs=True, top_logprobs=2),
        "developer": lambda at: ask(at, ("developer", ASKED["instructions"]), USER),
        "too long": refused,
        "busy": ask,
        "cut": stream,
        "leave": lambda at: stream(at, leave_at="opens"),
        "parallel": lambda at: [seen(said) for said in model(at).batch(QUESTIONS)],
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, extra_body={"top_k": 5, "min_p": None}),
        "more query": lambda at: ask(at, default_query={"api-version": "2026-01-01"}),
        "cookies": cookies,
        "embeddings": embeddings,
    },
    cannot={"models": "does not list models"},
)
