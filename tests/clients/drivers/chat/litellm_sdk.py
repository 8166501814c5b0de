"""LiteLLM as a library."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches a table of prices
import litellm

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import ASKED, MODEL, PICTURE, QUESTION, SCHEMA, TOOL, At, by_threads, called, drive, told

USER = {"role": "user", "content": QUESTION}
PERSON = {"type": "json_schema", "json_schema": {"name": "Person", "strict": True, "schema": SCHEMA}}


def complete(at: At, *messages: Any, **more: Any) -> Any:
    return litellm.completion(
        f"openai/{MODEL}", messages=list(messages) or [USER], base_url=at.base_url, api_key=at.key, **more
    )


def seen(whole: Any) -> Any:
    """An answer as a program sees it; the time at which LiteLLM made a chunk aside."""
    return {name: value for name, value in whole.model_dump().items() if name != "created"}


def ask(at: At, *messages: Any, **more: Any) -> Any:
    return seen(complete(at, *messages, **more))


def stream(at: At, **more: Any) -> Any:
    """All chunks that came, and the error that ended them, if one did."""
    chunks: list[Any] = []
    ending = {}
    try:
        for chunk in complete(at, stream=True, **more):
            chunks.append(seen(chunk))
    except Exception as error:
        ending = told(error)
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    return {"text": text, "chunks": chunks, **ending}


async def leave(at: At) -> Any:
    """Only a stream of its asynchronous half can be closed."""
    chunks: list[Any] = []
    running = await litellm.acompletion(
        f"openai/{MODEL}", messages=[USER], base_url=at.base_url, api_key=at.key, stream=True
    )
    async for chunk in running:
        chunks.append(seen(chunk))
        if "opens" in str(chunks[-1]["choices"]):
            break
    await running.aclose()
    return chunks


def results(said: Any) -> list[Any]:
    return [
        {"role": "tool", "tool_call_id": call.id, "content": called(call.function.arguments)}
        for call in said.tool_calls
    ]


def tools(at: At) -> Any:
    first = complete(at, tools=[TOOL])
    said = first.choices[0].message
    return [seen(first), ask(at, USER, said, *results(said), tools=[TOOL])]


def streamed_tools(at: At) -> Any:
    whole = litellm.stream_chunk_builder(list(complete(at, tools=[TOOL], stream=True)))
    said = whole.choices[0].message
    return [seen(whole), ask(at, USER, said, *results(said), tools=[TOOL])]


def vision(at: At) -> Any:
    parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    return ask(at, {"role": "user", "content": parts})


def refused(at: At) -> Any:
    try:
        return ask(at)
    except Exception as error:
        return told(error)


def embeddings(at: At) -> Any:
    name = f"openai/{ASKED['embedding_model']}"
    return litellm.embedding(name, input=[QUESTION, "Hi."], api_base=at.base_url, api_key=at.key).model_dump()


drive(
    "litellm openai",
    {
        "plain": ask,
        "stream": stream,
        "stream usage": lambda at: stream(at, stream_options={"include_usage": True}),
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: ask(at, {"role": "user", "content": ASKED["wanted"]}, response_format=PERSON),
        "vision": vision,
        "two answers": lambda at: ask(at, n=2),
        "logprobs": lambda at: ask(at, logprobs=True, top_logprobs=2),
        "too long": refused,
        "busy": lambda at: ask(at, max_retries=2),
        "cut": stream,
        "leave": leave,
        "parallel": lambda at: by_threads(lambda question: ask(at, {"role": "user", "content": question})),
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, extra_body={"top_k": 5, "min_p": None}),
        "cookies": lambda at: [ask(at), ask(at)],
        "embeddings": embeddings,
    },
    cannot={
        "developer": "turns the developer role into system before it asks",
        "more query": "does not pass `extra_query` on",
        "models": "does not list a provider's models",
    },
)
