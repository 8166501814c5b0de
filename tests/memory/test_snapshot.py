"""A session as JSON: what programs know of it, in their order, and of quarantine only what is isolated."""

import json

from memory.identify import place
from memory.models import ModelTable
from memory.nouns import MemoryApproach
from memory.settings import Settings
from memory.snapshot import About, state_json
from memory.tokens import Counter
from memory.whole import memory
from tests.clock import Hands
from tests.conversations import TENANT
from tests.memory.test_detect import CAPITALS, drawn
from tests.memory.vectors import WordVectors

HOME = place(TENANT, "home")
SLM = About(MemoryApproach.SLM, use_slm=True, use_lora_finetuning=False)


async def test_the_state_is_exported_as_programs_know_it(pool, dsn):
    whole = memory(pool, dsn, Counter(), ModelTable(), Settings(), Hands(), WordVectors())
    await whole.items.add(HOME, "gpt-4o", "one", "note")
    await whole.items.add(HOME, "gpt-4o", f"proposed: AKIA{drawn(16, CAPITALS)}", "note")
    await whole.board.create_task(HOME, "a task")
    await whole.board.create_agent(HOME, "Ann", "coder", ["python"])
    thread = await whole.quarantine.isolate(HOME, "ibex-4471", "note", "a code")
    assert len(await whole.quarantine.listed(HOME)) == 2

    told = json.loads(await state_json(whole, HOME, "gpt-4o", SLM))
    assert list(told) == [
        "session_id", "model", "memory_approach", "use_slm", "use_lora_finetuning", "timestamp", "memory_state",
        "active_memory_items", "tasks", "agents", "quarantined_contexts",
    ]  # fmt: skip
    assert [told[name] for name in ("memory_approach", "use_slm", "use_lora_finetuning")] == ["slm", True, False]
    assert told["memory_state"].keys() == {
        "total_context", "used_context", "available_context", "utilization_percentage", "token_usage", "performance_metrics",
    }  # fmt: skip
    _, item = told["active_memory_items"]
    assert item["compressed_summary"] == "one"
    assert item["last_accessed"] == "2026-01-05T12:00:00Z"
    assert (told["tasks"][0]["title"], told["agents"][0]["agent_name"]) == ("a task", "Ann")
    (context,) = told["quarantined_contexts"]
    assert context["thread_id"] == thread
    assert "isolated_content" not in context
