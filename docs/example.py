"""A coding assistant's day with the memory: 90,000 tokens of source, tasks, agents, a person, a quarantine, an export.

    python docs/example.py                     # on a PostgreSQL that runs inside
    DB_PASSWORD=... python docs/example.py     # on yours, with pgvector, at the address in `database`

The source that it stores is made up here, so that the example needs nothing else.
"""

import json
import os
import threading
import time

from memory import CompressionStrategy, LLMMemoryManager, TaskStatus

FRONTEND_TOKENS = 50_000
BACKEND_TOKENS = 40_000

COMPONENT = """\
import React, {{ useEffect, useState }} from "react";
import {{ api }} from "../api/client";
import {{ Panel, Spinner, Table }} from "../ui";

// {name}: {purpose}. Route /{path}, polled every {seconds} seconds.
export interface {name}Row {{
  id: string;
  {path}Total: number;
  updatedAt: string;
}}

export function {name}({{ tenant }}: {{ tenant: string }}) {{
  const [rows, setRows] = useState<{name}Row[]>([]);
  const [error, setError] = useState<string | null>(null);

  useEffect(() => {{
    let stopped = false;
    async function load() {{
      try {{
        const answer = await api.get(`/v1/{path}?tenant=${{tenant}}&limit={limit}`);
        if (!stopped) setRows(answer.rows);
      }} catch (problem) {{
        if (!stopped) setError(`{path}: ${{problem}}`);
      }}
    }}
    load();
    const timer = setInterval(load, {seconds} * 1000);
    return () => {{ stopped = true; clearInterval(timer); }};
  }}, [tenant]);

  if (error) return <Panel title="{name}" tone="danger">{{error}}</Panel>;
  if (!rows.length) return <Spinner label="Loading {path}" />;
  return <Table rows={{rows}} columns={{["id", "{path}Total", "updatedAt"]}} />;
}}
"""

HANDLER = '''\
from dataclasses import dataclass

from billing.db import connection
from billing.errors import NotFound, TooMany

MOST_{upper} = {limit}


@dataclass(frozen=True)
class {name}:
    """{purpose}. Kept for {seconds} days in the table {path}s."""

    id: str
    tenant: str
    {path}_total: int


async def list_{path}s(tenant: str, limit: int = {limit}) -> list[{name}]:
    if limit > MOST_{upper}:
        raise TooMany("{path}", MOST_{upper})
    async with connection(tenant) as db:
        rows = await db.fetch("select id, tenant, {path}_total from {path}s where tenant = $1 limit $2", tenant, limit)
    return [{name}(**row) for row in rows]


async def load_{path}(tenant: str, id: str) -> {name}:
    async with connection(tenant) as db:
        row = await db.fetchrow("select * from {path}s where tenant = $1 and id = $2", tenant, id)
    if row is None:
        raise NotFound("{path}", id)
    return {name}(**row)
'''

THINGS = (
    "invoice refund customer ledger voucher shipment pallet carrier return parcel route driver depot tariff".split()
)
PURPOSES = ("shows what is overdue", "adds up a month", "compares two quarters", "lists what a person must look at")


def source(template: str, number: int) -> str:
    """One made-up file; its numbers differ from those of the others."""
    thing = THINGS[number % len(THINGS)] + (str(number // len(THINGS)) if number >= len(THINGS) else "")
    return template.format(
        name=thing.capitalize(),
        path=thing,
        upper=thing.upper(),
        purpose=PURPOSES[number % len(PURPOSES)],
        seconds=5 + number % 60,
        limit=25 * (1 + number % 40),
    )


def store_sources(
    manager: LLMMemoryManager, template: str, folder: str, content_type: str, most_tokens: int
) -> list[str]:
    """Store files until so many tokens are reached, in items of some 5,000 tokens; gives the ids."""
    ids, tokens, number = [], 0, 0
    while tokens < most_tokens:
        text = ""
        while manager.count_tokens(text) < 5_000:
            text += f"// file {folder}/{number}\n{source(template, number)}\n"
            number += 1
        tokens += manager.count_tokens(text)
        ids.append(manager.add_memory_item(text, content_type, priority=5, metadata={"folder": folder}))
    print(f"  {folder}: {tokens:,} tokens in {len(ids)} items")
    return ids


def show_state(manager: LLMMemoryManager) -> None:
    state = manager.get_memory_state()
    stored = sum(item["tokens"] for item in state["active_items"])
    print(f"  stored {stored:,} tokens; in the prompt {state['used_context_length']:,}", end=" ")
    print(f"of {state['total_context_length']:,} ({state['context_utilization_percentage']:.1f} %)")


def store(manager: LLMMemoryManager) -> tuple[list[str], list[str]]:
    print("1. Store a code base that nearly fills the window")
    manager.add_memory_item(
        "Decision: refunds above 500 euros need a second signature, because the auditors asked for it in May.",
        "decision",
        priority=9,
        metadata={"by": "Ann"},
    )
    manager.wait_until_indexed(timeout_seconds=60)  # words are found at once, meanings when they are embedded
    frontend = store_sources(manager, COMPONENT, "frontend", "frontend_code", FRONTEND_TOKENS)
    backend = store_sources(manager, HANDLER, "backend", "backend_code", BACKEND_TOKENS)
    show_state(manager)
    return frontend, backend


def read_back(manager: LLMMemoryManager, frontend: list[str]) -> None:
    print("2. Search by meaning, then read in full")
    for question in ("Who has to sign when a refund is large?", "the list_tariffs query"):
        best = manager.search_memory_semantic(question, limit=3)[0]
        print(f"  {question} -> {best['content_type']}, score {best['score']:.2f}")
    (decision,) = manager.search_memory_semantic("a second signature", limit=1, content_types=["decision"])
    print(f"  {decision['full_content']}")

    item = manager.retrieve_memory_item(frontend[0])
    assert item is not None
    ratio = item["token_count"] / item["compressed_token_count"]
    print(
        f"  item {item['id']}: {item['token_count']:,} tokens, told in {item['compressed_token_count']} ({ratio:.0f}:1)"
    )
    assert "export function" in item["full_content"]


def compress(manager: LLMMemoryManager, backend: list[str]) -> None:
    print("3. Tell a text shorter")
    item = manager.retrieve_memory_item(backend[0])
    assert item is not None
    for strategy in CompressionStrategy:
        shorter = manager.compress_content(item["full_content"], "backend_code", strategy)
        print(f"  {strategy.value}: {item['token_count']:,} -> {manager.count_tokens(shorter):,} tokens")


def work_on_context(manager: LLMMemoryManager) -> None:
    print("4. Make a prompt of it")
    context = manager.get_working_context(max_tokens=20_000)
    print(f"  {len(context['full_items'])} in full, {len(context['compressed_items'])} in short,", end=" ")
    print(f"{context['total_tokens']:,} tokens, {context['available_tokens']:,} left")
    if context["compressed_items"]:
        print(f"  {context['compressed_items'][0]['retrieval_hint']}")
    asked = manager.get_working_context(max_tokens=20_000, query="second signature for refunds")
    assert any("second signature" in entry["content"] for entry in asked["full_items"])


def plan_work(manager: LLMMemoryManager) -> None:
    print("5. Tasks that wait for each other, and agents")
    schema = manager.create_task("Add signed_by to refunds", "a migration and its test", priority=8)
    api = manager.create_task("Refuse unsigned refunds", priority=7, dependencies=[schema])
    page = manager.create_task("Show who signed", priority=3, assigned_agent="Ben", dependencies=[api])
    manager.create_agent("Ann", "backend", ["python", "sql"], assigned_tools=["psql"])
    manager.create_agent("Ben", "frontend", ["typescript", "react"])

    manager.update_task(schema, status=TaskStatus.IN_PROGRESS, progress=50)
    manager.update_task(schema, status=TaskStatus.COMPLETED)
    manager.update_task(api, status="in_progress", progress=10, metadata={"branch": "signed-refunds"})
    for task in manager.get_tasks():
        waits = f", after {len(task['dependencies'])}" if task["dependencies"] else ""
        print(f"  [{task['priority']}] {task['title']}: {task['status']}, {task['progress']:.0f} %{waits}")
    print(f"  agents: {', '.join(agent['agent_name'] for agent in manager.get_agents())}")
    assert [task["id"] for task in manager.get_tasks("pending")] == [page]


def ask_a_person(manager: LLMMemoryManager) -> None:
    print("6. Ask a person, and wait for the answer")
    asked = manager.request_human_input("May the migration run on the live database?", priority=9)

    def somebody_answers() -> None:
        time.sleep(0.2)
        (waiting,) = manager.get_pending_hil_requests()
        manager.provide_human_response(waiting["id"], "Yes, after 22:00.")

    threading.Thread(target=somebody_answers).start()
    answer = manager.wait_for_human_response(asked, timeout_seconds=30)
    print(f"  {answer['question']} {answer['response']}")
    assert answer["status"] == "answered"


def put_away(manager: LLMMemoryManager) -> None:
    print("7. Put something out of sight")
    slip = "The staging password is correct-horse-battery."
    item = manager.add_memory_item(slip, "log")
    thread = manager.quarantine_context(slip, "credential", "a password in a log", {"found_by": "review"})
    assert manager.retrieve_memory_item(item) is None
    assert all(slip not in found["full_content"] for found in manager.search_memory_semantic("staging password"))
    (held,) = manager.get_quarantined_contexts()
    print(
        f"  {held['reason_for_isolation']}: {held['token_count']} tokens, content told here: {held['isolated_content']}"
    )
    read = manager.get_quarantined_context(thread)
    assert read is not None
    assert read["isolated_content"] == slip


def finish(manager: LLMMemoryManager) -> None:
    print("8. Tidy, add up, export")
    manager.track_token_usage(input_tokens=92_000, output_tokens=3_500)
    print(f"  hygiene: {manager.perform_chat_hygiene()}")
    show_state(manager)
    usage = manager.get_memory_state()["token_usage_stats"]
    print(f"  {usage['input_tokens']:,} tokens in, {usage['output_tokens']:,} out: ${usage['total_cost']:.3f}")
    exported = json.loads(manager.export_memory_state_json())
    print(f"  export: {len(exported['active_memory_items'])} items, {len(exported['tasks'])} tasks,", end=" ")
    print(f"{len(exported['agents'])} agents, {len(exported['quarantined_contexts'])} in quarantine")
    assert "correct-horse" not in json.dumps(exported)


def database() -> dict:
    """Where PostgreSQL is; without these arguments it runs inside."""
    if "DB_PASSWORD" not in os.environ:
        return {}
    return {
        "db_host": "localhost",
        "db_port": 15432,
        "db_name": "infold",
        "db_user": "infold",
        "db_password": os.environ["DB_PASSWORD"],
    }


def main() -> None:
    with LLMMemoryManager(**database(), model_name="gpt-4o") as manager:
        print(f"Session {manager.session_id}, model {manager.model_name}")
        frontend, backend = store(manager)
        read_back(manager, frontend)
        compress(manager, backend)
        work_on_context(manager)
        plan_work(manager)
        ask_a_person(manager)
        put_away(manager)
        finish(manager)


if __name__ == "__main__":
    main()
