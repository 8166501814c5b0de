"""A session as one JSON text, as the class and REST export it."""

import json
from typing import NamedTuple

import msgspec

from memory import check
from memory.nouns import MemoryApproach, Place
from memory.whole import Memory

ITEM = (
    "id content_type compressed_summary token_count compressed_token_count priority access_count last_accessed"
).split()


class About(NamedTuple):
    """What is told of the program that asks."""

    memory_approach: MemoryApproach
    use_slm: bool
    use_lora_finetuning: bool


async def state_json(memory: Memory, place: Place, model: str, about: About) -> str:
    """Numbers, the newest 1,000 active items, tasks, agents, and what is isolated, without its content."""
    state = await memory.items.state(place, model)
    items, _ = await memory.items.listed(place, place.tenant, None, check.MOST_LIMIT, "active", full=False)
    tasks, agents = await memory.board.tasks(place), await memory.board.agents(place)
    isolated = [msgspec.to_builtins(one) for one in await memory.quarantine.listed(place) if one.is_active]
    told = {
        "session_id": state.session_id,
        "model": state.model_name,
        **about._asdict(),
        "timestamp": memory.clock(),
        "memory_state": {
            "total_context": state.total_context_length,
            "used_context": state.used_context_length,
            "available_context": state.available_context_length,
            "utilization_percentage": state.context_utilization_percentage,
            "token_usage": state.token_usage_stats,
            "performance_metrics": state.performance_metrics,
        },
        "active_memory_items": [{name: getattr(item, name) for name in ITEM} for item in items],
        "tasks": tasks,
        "agents": agents,
        "quarantined_contexts": [
            {name: value for name, value in one.items() if name != "isolated_content"} for one in isolated
        ],
    }
    return json.dumps(msgspec.to_builtins(told), indent=2, ensure_ascii=False)
