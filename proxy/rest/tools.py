"""Functions that a program hands to its model, and what they do.

None of them touches quarantine or answers a person.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from memory import check
from memory.digest.shorten import shorten
from memory.errors import InvalidRequest, NotFound
from memory.nouns import MemoryItem
from memory.tokens import Counter
from proxy.rest.asking import Asking
from proxy.rest.bodies import ToolRan, ToolsListed

Arguments = Mapping[str, Any]

QUERY_TYPES = ("semantic", "temporal", "factual")
RANGES = {"day": timedelta(days=1), "week": timedelta(days=7), "month": timedelta(days=30), "all": None}
MOST_RECENT = 100
SUMMARY_TOKENS = 800
SUMMARISED_CHARS = 1_000_000  # of summaries, the newest first, that a telling is made from
COUNTER = Counter()


def function(name: str, description: str, required: list[str], **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    function(
        "memory_search",
        "Find what was stored earlier.",
        ["query"],
        query={"type": "string", "description": "What to look for, in plain words."},
        query_type={
            "type": "string",
            "enum": [*QUERY_TYPES],
            "description": "semantic: closest first; temporal: newest first; factual: by exact words.",
        },
        limit={"type": "integer", "minimum": 1, "maximum": check.MOST_LIMIT},
    ),
    function(
        "memory_store",
        "Keep something for later.",
        ["content"],
        content={"type": "string"},
        content_type={"type": "string", "description": "Such as note, decision, code."},
        importance={"type": "integer", "minimum": 0, "maximum": 10},
        tags={"type": "array", "items": {"type": "string"}},
    ),
    function(
        "get_context",
        "The newest things that were stored.",
        [],
        num_recent={"type": "integer", "minimum": 1, "maximum": MOST_RECENT},
    ),
    function(
        "summarize_memory",
        "A short telling of what was stored.",
        [],
        time_range={"type": "string", "enum": [*RANGES]},
        topics={"type": "array", "items": {"type": "string"}},
    ),
]


async def listed(asking: Asking) -> ToolsListed:
    return ToolsListed(tools=TOOLS)


async def run(asking: Asking) -> ToolRan:
    """The body is the arguments' object."""
    tool = RUNS.get(asking.named["name"])
    if tool is None:
        raise NotFound(f"there is no tool {asking.named['name']!r}; `GET tools` lists them", "name")
    return ToolRan(result=await tool(asking, await asking.body(dict)))


async def memory_search(asking: Asking, given: Arguments) -> Any:
    kind = one_of(given.get("query_type", "semantic"), "query_type", QUERY_TYPES)
    found = await asking.memory.items.search(
        asking.place, given.get("query"), given.get("limit", 5), by_meaning=kind != "factual"
    )
    if kind == "temporal":
        found = tuple(sorted(found, key=lambda item: item.created_at, reverse=True))
    return [told(item) for item in found]


async def memory_store(asking: Asking, given: Arguments) -> Any:
    tags = check.texts(given.get("tags"), "tags")
    priority = check.integer(given.get("importance", 0), "importance", 0, 10)
    item = await asking.memory.items.add(
        asking.place, asking.model, given.get("content"), given.get("content_type", "note"), priority,
        {"tags": list(tags)} if tags else None,
    )  # fmt: skip
    return {"item_id": item.id}


async def get_context(asking: Asking, given: Arguments) -> Any:
    most = check.integer(given.get("num_recent", 10), "num_recent", 1, MOST_RECENT)
    items, _ = await asking.memory.items.listed(asking.place, asking.tenant, None, most, "active")
    return [told(item) for item in items]


async def summarize_memory(asking: Asking, given: Arguments) -> Any:
    """Of the newest 1,000 items; with topics, of those that hold a topic's words, as many as one answer holds."""
    reach = RANGES[one_of(given.get("time_range", "all"), "time_range", tuple(RANGES))]
    topics = [topic.lower() for topic in check.texts(given.get("topics"), "topics")]
    items, _ = await asking.memory.items.listed(
        asking.place, asking.tenant, None, check.MOST_LIMIT, "active", full=bool(topics)
    )
    since = asking.memory.clock() - reach if reach else datetime.min.replace(tzinfo=UTC)
    return await asyncio.to_thread(summary_of, [item for item in items if item.created_at >= since], topics)


RUNS: Mapping[str, Callable[[Asking, Arguments], Awaitable[Any]]] = {
    "memory_search": memory_search,
    "memory_store": memory_store,
    "get_context": get_context,
    "summarize_memory": summarize_memory,
}


def summary_of(items: Sequence[MemoryItem], topics: Sequence[str]) -> dict[str, Any]:
    """Of items, newest first, those that hold a topic; up to SUMMARISED_CHARS are read. Takes tenths of a second."""
    chosen = [item for item in items if not topics or holds(item.full_content or "", topics)]
    texts, room = [], SUMMARISED_CHARS
    for item in chosen:
        if room <= 0:
            break
        texts.append(item.compressed_summary[:room])
        room -= len(item.compressed_summary)
    return {"summary": shorten("\n\n".join(reversed(texts)), SUMMARY_TOKENS, count_tokens), "items": len(texts)}


def holds(text: str, topics: Sequence[str]) -> bool:
    lowered = text.lower()
    return any(topic in lowered for topic in topics)


def told(item: MemoryItem) -> dict[str, Any]:
    shown = ("id", "content_type", "priority", "created_at", "metadata")
    plain = msgspec.to_builtins(item)
    return {name: plain[name] for name in shown} | {"content": item.full_content}


def count_tokens(text: str) -> int:
    return COUNTER.text(text, "o200k_base")


def one_of(value: object, field: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRequest(f"{field} must be one of {', '.join(allowed)}", field)
    return value
