"""Pydantic AI's agents over OpenAIChatModel."""

import sys
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel, TypeAdapter
from pydantic_ai import Agent, BinaryContent, Embedder, NativeOutput
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

sys.path.insert(0, str(Path(__file__).parents[1]))
from driving import ASKED, MODEL, PICTURE, QUESTION, At, by_tasks, drive, told, weather


class Person(BaseModel):
    name: str
    age: int


def agent(at: At, profile: OpenAIModelProfile | None = None, **more: Any) -> Agent[None, Any]:
    provider = OpenAIProvider(base_url=at.base_url, api_key=at.key)
    return Agent(OpenAIChatModel(MODEL, provider=provider, profile=profile), **more)


def seen(run: Any) -> Any:
    """The output and the answers."""
    output = run.output.model_dump() if isinstance(run.output, BaseModel) else run.output
    return {"output": output, "answers": answers(run.new_messages())}


def answers(messages: Any) -> Any:
    """Each answer's parts; ids and times that Pydantic AI makes by chance aside."""
    return [
        {
            "parts": [
                (part.part_kind, getattr(part, "content", None), getattr(part, "args", None)) for part in one.parts
            ],
            "usage": str(one.usage),
            "model": one.model_name,
            "details": one.provider_details,
        }
        for one in messages
        if one.kind == "response"
    ]


async def ask(at: At, question: Any = QUESTION, settings: Any = None, **more: Any) -> Any:
    return seen(await agent(at, **more).run(question, model_settings=settings))


async def stream(at: At, leave_at: str = "", **more: Any) -> Any:
    """The texts as they came; leaves at a word where one is given."""
    texts: list[str] = []
    ending: dict[str, Any] = {}
    said: Any = []
    try:
        async with agent(at, **more).run_stream(QUESTION) as run:
            async for text in run.stream_text(delta=True, debounce_by=None):
                texts.append(text)
                if leave_at and leave_at in text:
                    break
            said = answers(run.all_messages())
    except Exception as error:
        ending = told(error)
    return {"text": "".join(texts), "texts": texts, "answers": said, **ending}


async def tools(at: At) -> Any:
    return await ask(at, tools=[weather])


async def streamed_tools(at: At) -> Any:
    return await stream(at, tools=[weather])


async def developer(at: At) -> Any:
    return await ask(at, profile=OpenAIModelProfile(openai_system_prompt_role="developer"), instructions="Be brief.")


async def refused(at: At) -> Any:
    try:
        return await ask(at)
    except Exception as error:
        return told(error)


async def cookies(at: At) -> Any:
    chat = agent(at)
    return [seen(await chat.run(QUESTION)) for _ in range(2)]


async def more_query(at: At) -> Any:
    sdk = AsyncOpenAI(base_url=at.base_url, api_key=at.key, default_query={"api-version": "2026-01-01"})
    chat = Agent(OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=sdk)))
    return seen(await chat.run(QUESTION))


async def embeddings(at: At) -> Any:
    provider = OpenAIProvider(base_url=at.base_url, api_key=at.key)
    embedder = Embedder(OpenAIEmbeddingModel(ASKED["embedding_model"], provider=provider))
    made = await embedder.embed_documents([QUESTION, "Hi."])
    return TypeAdapter(Any).dump_python(made.embeddings, mode="json")


def picture() -> BinaryContent:
    return BinaryContent.from_data_uri(PICTURE)


drive(
    "pydantic-ai-slim openai",
    {
        "plain": ask,
        "stream": stream,
        "stream usage": stream,
        "tool": tools,
        "two tools": tools,
        "streamed tools": streamed_tools,
        "structured": lambda at: ask(at, ASKED["wanted"], output_type=NativeOutput(Person)),
        "vision": lambda at: ask(at, [QUESTION, picture()]),
        "logprobs": lambda at: ask(at, settings={"openai_logprobs": True, "openai_top_logprobs": 2}),
        "developer": developer,
        "too long": refused,
        "busy": ask,
        "cut": stream,
        "leave": lambda at: stream(at, leave_at="opens"),
        "parallel": lambda at: by_tasks(lambda question: ask(at, question)),
        "packed": ask,
        "packed stream": stream,
        "more fields": lambda at: ask(at, settings={"extra_body": {"top_k": 5, "min_p": None}}),
        "more query": more_query,
        "cookies": cookies,
        "embeddings": embeddings,
    },
    cannot={"two answers": "asks for one answer only", "models": "does not list models"},
)
