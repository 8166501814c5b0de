"""The conversations that the benchmarks replay: read from disk, or generated from a seed.

`INFOLD_BENCH_DATA` names a folder of `<set>.jsonl.gz`, one conversation a line:

    {"set", "conv", "group", "messages": [{"id", "role", "name"?, "time"?, "content", "tool_calls"?, "tool_call_id"?}],
     "questions": [{"id", "question", "answer", "category", "evidence": [message ids], "evidence_audited"?}],
     "probes": [{"at": message id, "needs": [{"value": string, "from": [message ids]}]}]}

Without it the sample beside this file is read. Questions are asked after the whole conversation; a probe is the
request for the agent's action `at`, which uses values that stood in an earlier message.
"""

import gzip
import json
import os
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

Json = dict[str, Any]

SAMPLE = Path(__file__).parent / "sample"
CODE = ("argparse", "ast", "inspect", "typing", "zipfile", "tarfile", "shutil")  # real code for tool results


@dataclass(frozen=True, slots=True)
class Gold:
    """Text that an answer needs: the message's own words, and the message as it was sent."""

    text: str
    sent: str


@dataclass(frozen=True, slots=True)
class Case:
    """One request whose prompt should hold its evidence."""

    id: str
    stop: int  # the request holds messages [0, stop) of the conversation
    question: str | None  # the newest user message after them; None: a probe, which ends where the agent acts
    gold: tuple[Gold, ...]
    answer: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    name: str
    set: str
    messages: tuple[Json, ...]  # as a client sends them
    cases: tuple[Case, ...] = ()
    tools: tuple[Json, ...] = ()
    group: str = ""  # conversations of one group tell the same story: what one says, another gives away


def folder() -> Path:
    return Path(os.environ.get("INFOLD_BENCH_DATA") or SAMPLE)


def sets(names: Sequence[str] = ()) -> list[str]:
    """The sets in the folder; those of `names` where given.

    Raises:
        SystemExit: a name that is not there.
    """
    there = sorted(path.name.removesuffix(".jsonl.gz") for path in folder().glob("*.jsonl.gz"))
    if missing := set(names) - set(there):
        raise SystemExit(f"no {', '.join(sorted(missing))} in {folder()}; there are {', '.join(there) or 'no sets'}")
    return [name for name in there if not names or name in names]


def load(name: str) -> list[Conversation]:
    """All conversations of a set with the cases that have evidence, in file order."""
    with gzip.open(folder() / f"{name}.jsonl.gz") as lines:
        return [parse(orjson.loads(line)) for line in lines]


def parse(raw: Json) -> Conversation:
    place = {message["id"]: index for index, message in enumerate(raw["messages"])}
    sent = tuple(as_sent(message) for message in raw["messages"])

    def gold(ids: Sequence[str]) -> tuple[Gold, ...]:
        rows = [place[i] for i in dict.fromkeys(ids) if i in place]
        return tuple(
            Gold(raw["messages"][r]["content"], sent[r]["content"]) for r in rows if raw["messages"][r]["content"]
        )

    asked = [
        Case(
            q["id"],
            len(sent),
            q["question"],
            gold(q.get("evidence_audited") or q["evidence"]),
            str(q.get("answer") or ""),
            q.get("category") or "",
        )
        for q in raw.get("questions") or ()
    ]
    probed = [
        Case(f"{raw['conv']}@{p['at']}", place[p["at"]], None, tuple(Gold(n["value"], n["value"]) for n in p["needs"]))
        for p in raw.get("probes") or ()
    ]
    cases = tuple(case for case in asked + probed if case.gold)
    return Conversation(raw["conv"], raw["set"], sent, cases, group=raw.get("group") or raw["conv"])


def as_sent(message: Json) -> Json:
    """A message on the wire: `[time] name: content` where time and name exist; calls and results as they are."""
    wire: Json = {key: message[key] for key in ("role", "content") if key in message}
    if message["role"] in ("user", "assistant") and message["content"]:
        time = f"[{message['time']}] " if message.get("time") else ""
        name = f"{message['name']}: " if message.get("name") else ""
        wire["content"] = time + name + message["content"]
    for key in ("tool_calls", "tool_call_id"):
        if message.get(key):
            wire[key] = message[key]
    if message["role"] == "tool" and message.get("name"):
        wire["name"] = message["name"]
    return wire


def sample_cases(conversations: Sequence[Conversation], limit: int | None, rng: random.Random) -> list[Conversation]:
    """The conversations with at most `limit` of all their cases, drawn at random; those left without one are gone."""
    rows = [(index, case) for index, conversation in enumerate(conversations) for case in conversation.cases]
    kept = set(rng.sample(range(len(rows)), limit)) if limit and limit < len(rows) else set(range(len(rows)))
    cases: dict[int, list[Case]] = {}
    for number, (index, case) in enumerate(rows):
        if number in kept:
            cases.setdefault(index, []).append(case)
    return [replace(c, cases=tuple(cases[i])) for i, c in enumerate(conversations) if i in cases]


def chained(conversations: Sequence[Conversation], size: int, rng: random.Random) -> Iterator[Conversation]:
    """Agent transcripts one after the other, `size` to a session: the first one's system message, then all the rest."""
    order = rng.sample(list(conversations), len(conversations))
    for start in range(0, len(order) - size + 1, size):
        group = order[start : start + size]
        messages = [m for i, c in enumerate(group) for m in c.messages if i == 0 or m["role"] != "system"]
        yield Conversation(f"{group[0].set} chain {start // size + 1}", group[0].set, tuple(messages))


@lru_cache
def source_text() -> str:
    stdlib = Path(sysconfig.get_path("stdlib"))
    return "".join((stdlib / f"{module}.py").read_text() for module in CODE)


VERBS = ("Read", "Refactor", "Fix", "Test", "Explain", "Profile", "Document", "Rename", "Split", "Review")
NOUNS = ("parser", "scheduler", "cache", "router", "session", "tokenizer", "store", "loop", "schema", "stream", "queue")


def tool_definitions() -> tuple[Json, ...]:
    def tool(name: str, what: str, **properties: str) -> Json:
        described = {key: {"type": "string", "description": text} for key, text in properties.items()}
        parameters = {"type": "object", "properties": described, "required": list(described)}
        return {"type": "function", "function": {"name": name, "description": what, "parameters": parameters}}

    path = "Path of the file, relative to the root of the workspace"
    return (
        tool("read_file", "Read lines of a file in the workspace.", path=path, lines="First and last line, as 10-80"),
        tool("search_code", "Search the workspace with a regular expression.", pattern="The expression", path=path),
        tool("run_shell", "Run a shell command and return what it prints.", command="The command line"),
        tool("apply_patch", "Apply a unified diff to a file.", path=path, patch="The diff"),
    )


def tool_result(rng: random.Random, name: str, size: int) -> str:
    """A file excerpt, a search result, a log or a JSON listing of about `size` characters."""
    text = source_text()
    start = rng.randrange(len(text) - size)
    if name == "read_file":
        return text[start : start + size]
    if name == "search_code":
        lines = text[start : start + size * 2].splitlines()[: size // 50]
        return "\n".join(
            f"src/{rng.choice(NOUNS)}.py:{rng.randrange(900)}: {line.strip()}" for line in lines if line.strip()
        )
    if name == "apply_patch":
        return json.dumps([{"hunk": i, "line": rng.randrange(900), "applied": True} for i in range(rng.randint(1, 6))])
    levels = ("INFO", "INFO", "INFO", "WARN", "ERROR")
    return "\n".join(
        f"2026-01-{rng.randrange(1, 29):02d} 12:{i % 60:02d}:07 {rng.choice(levels)} {rng.choice(NOUNS)}: request "
        f"{rng.getrandbits(48):012x} took {rng.randrange(9000)} ms"
        for i in range(size // 75)
    )


def generated(seed: int, steps: int = 60, result_characters: int = 5_000, steps_per_task: int = 12) -> Conversation:
    """An agent session of `steps` tool calls: a user's task, calls with results, a summary, the next task."""
    rng = random.Random(f"generated-{seed}")
    messages: list[Json] = [
        {"role": "system", "content": "You are a careful coding agent. Keep changes small and tested. " * 20}
    ]
    for step in range(steps):
        noun = rng.choice(NOUNS)
        if step % steps_per_task == 0:
            if step:
                done = rng.randrange(len(source_text()) - 900)
                messages.append(
                    {"role": "assistant", "content": f"Done. What changed:\n{source_text()[done : done + 800]}"}
                )
            verb = rng.choice(VERBS)
            messages.append(
                {
                    "role": "user",
                    "content": f"Task {step // steps_per_task + 1}: {verb} the {noun}; ticket {rng.getrandbits(40):x}.",
                }
            )
        messages += exchange(rng, noun, rng.randrange(result_characters // 2, result_characters * 3 // 2))
    messages.append({"role": "assistant", "content": "All tasks are done and the tests pass."})
    return Conversation(f"generated {seed}", "generated", tuple(messages), tools=tool_definitions())


def exchange(rng: random.Random, noun: str, size: int) -> list[Json]:
    """A call of a tool and its result."""
    name = rng.choice(("read_file", "read_file", "search_code", "run_shell", "apply_patch"))
    call = f"call_{rng.getrandbits(64):016x}"
    path, first = f"src/{noun}.py", rng.randrange(900)
    arguments = {
        "read_file": {"path": path, "lines": f"{first}-{first + 100}"},
        "search_code": {"pattern": f"{noun}_[a-z]+", "path": "src"},
        "run_shell": {"command": f"pytest -q tests/test_{noun}.py"},
        "apply_patch": {"path": path, "patch": tool_result(rng, "read_file", 400)},
    }[name]
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [
        {
            "role": "assistant",
            "content": f"Next I look at the {noun}.",
            "tool_calls": [{"id": call, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call, "content": tool_result(rng, name, size)},
    ]
