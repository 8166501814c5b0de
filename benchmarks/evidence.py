"""Is the text that an answer needs in the prompt that the model gets?

Every question is sent as the newest user message after its conversation, through the real HTTP port; every probe of an
agent transcript is the conversation up to the agent's action. A scripted provider keeps what it was sent, and the
gold evidence is looked for in it verbatim: a long message counts only in full.

A prompt budget of B tokens is a model whose window is B + 256 with `max_tokens` 256; all that is forwarded counts.

  fresh      each question under a key of its own: the fold is cold, the search lexical
  settled    the questions of a conversation share its frozen state, embeddings are ready
  keep-last  the newest whole messages that fit B
  bm25       whole messages by BM25 (k1 1.5, b 0.75), best first, until B is full
  direct     doing nothing: what fits the window is answered, the rest is refused

Recall: share of a question's gold found, mean over questions. All: share of questions with all of it. "as sent" looks
for `[time] name: content` in place of the content alone, which very short messages cannot pass by chance.
"""

import argparse
import asyncio
import hashlib
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import bm25s  # type: ignore[import-untyped]
import common
import data
from client import Client, chat_body, connect
from common import console
from data import Case, Conversation, Json
from provider import count, count_each
from rich.progress import Progress, TaskID
from rich.table import Table
from servers import servers

ANSWER_TOKENS = 256
BUDGETS = {"locomo": (2_048, 8_192), "tau-airline": (4_096,)}  # tokens; other sets: 8,192
QUICK_BUDGETS = {"qmsum": (4_096,), "tau-airline": (3_072,)}
NEUTRAL = {"role": "user", "content": "Thank you, that is all for the moment."}
AIMS = {  # recall and all-evidence, fresh, on the development halves
    ("locomo", 8_192): (0.88, 0.83),
    ("locomo", 2_048): (0.74, 0.67),
    ("beam-100k", 8_192): (0.52, 0.41),
    ("swe-java", 8_192): (0.88, 0.86),
    ("tau-airline", 4_096): (0.94, 0.92),
    ("qmsum", 8_192): (0.62, 0.32),
}


@dataclass(slots=True)
class Score:
    """What one way of filling the prompt found, over the questions of a set."""

    questions: int = 0
    recall: float = 0.0  # sums until `mean`
    all: float = 0.0
    recall_as_sent: float = 0.0
    all_as_sent: float = 0.0
    tokens: float = 0.0  # forwarded, per answered request
    refused: int = 0  # by the provider
    over_window: int = 0  # answered with a prompt over the budget
    modes: dict[str, int] = field(default_factory=dict)

    def add(self, case: Case, prompt: str | None, tokens: int, budget: int, mode: str) -> None:
        self.questions += 1
        self.modes[mode] = self.modes.get(mode, 0) + 1
        if prompt is None:
            self.refused += 1
            return
        found = [gold.text in prompt for gold in case.gold]
        as_sent = [gold.sent in prompt for gold in case.gold]
        self.recall += sum(found) / len(found)
        self.all += all(found)
        self.recall_as_sent += sum(as_sent) / len(as_sent)
        self.all_as_sent += all(as_sent)
        self.tokens += tokens
        self.over_window += tokens > budget

    def mean(self) -> Json:
        n, answered = max(1, self.questions), max(1, self.questions - self.refused)
        shares = ("recall", "all", "recall_as_sent", "all_as_sent")
        means = {name: round(getattr(self, name) / n, 4) for name in shares}
        return asdict(self) | means | {"tokens": round(self.tokens / answered)}


def text_of(messages: Iterable[Json]) -> str:
    """All text of a prompt: contents, names and arguments of calls, kept apart by a character that no text has."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        texts += [content] if isinstance(content, str) else [p.get("text") or "" for p in content or ()]
        for call in message.get("tool_calls") or ():
            texts += [call["function"]["name"], call["function"]["arguments"]]
    return "\x1f".join(texts)


def request(conversation: Conversation, case: Case) -> list[Json]:
    question = [{"role": "user", "content": case.question}] if case.question is not None else []
    return [*conversation.messages[: case.stop], *question]


def evidence_text(case: Case, messages: Sequence[Json]) -> str:
    """The text in which gold may be found: the question itself does not count."""
    return text_of(messages[:-1] if case.question is not None else messages)


class Baselines:
    """Keep-last and BM25 with the same budget, counted as the provider counts."""

    def __init__(self, conversation: Conversation) -> None:
        self.messages = conversation.messages
        self.tokens = count_each(conversation.messages)
        self.front = next((i for i, m in enumerate(self.messages) if m["role"] != "system"), len(self.messages))
        self.indexed = 0
        self.index: Any = None

    def room(self, case: Case, budget: int) -> int:
        """Tokens left beside system messages and question."""
        question = count({"messages": request_tail(case)})
        return budget - question - sum(self.tokens[: self.front])

    def prompt(self, case: Case, kept: Iterable[int]) -> tuple[str, int]:
        rows = [*range(self.front), *sorted(kept)]
        tokens = sum(self.tokens[row] for row in rows) + count({"messages": request_tail(case)})
        return text_of(self.messages[row] for row in rows), tokens

    def keep_last(self, case: Case, budget: int) -> tuple[str, int]:
        room, start = self.room(case, budget), case.stop
        while start > self.front and self.tokens[start - 1] <= room:
            start -= 1
            room -= self.tokens[start]
        return self.prompt(case, range(start, case.stop))

    def bm25(self, case: Case, budget: int) -> tuple[str, int]:
        """A probe keeps its newest message and searches with it and the newest user message."""
        newest = [] if case.question is not None else [case.stop - 1]
        query = case.question or text_of(self.messages[row] for row in {*newest, self.newest_user(case.stop)})
        room, kept = self.room(case, budget) - sum(self.tokens[row] for row in newest), list(newest)
        for row in self.ranked(query, case.stop):
            if row not in newest and self.tokens[row] <= room:
                kept.append(row)
                room -= self.tokens[row]
        return self.prompt(case, kept)

    def newest_user(self, stop: int) -> int:
        return next((row for row in range(stop - 1, -1, -1) if self.messages[row]["role"] == "user"), stop - 1)

    def ranked(self, query: str, stop: int) -> list[int]:
        """Rows from the front's end to `stop`, best first; ties go to the newer."""
        if self.index is None or self.indexed != stop:
            texts = [text_of([m]) for m in self.messages[self.front : stop]]
            self.index, self.indexed = bm25s.BM25(k1=1.5, b=0.75), stop
            self.index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        tokens = bm25s.tokenize([query], show_progress=False, return_ids=False)[0]
        scores = self.index.get_scores([t for t in tokens if t in self.index.vocab_dict]) if tokens else []
        rows = list(range(self.front, stop))
        best: dict[int, float] = dict(zip(rows, scores, strict=True)) if len(scores) else {}
        return sorted(rows, key=lambda row: (-best.get(row, 0.0), -row))


def request_tail(case: Case) -> list[Json]:
    return [{"role": "user", "content": case.question}] if case.question is not None else []


@dataclass(slots=True)
class Run:
    """One set at one budget, through the proxy."""

    client: Client
    given: argparse.Namespace
    budget: int
    gate: asyncio.Semaphore

    @property
    def model(self) -> str:
        return f"ctx-{self.budget + ANSWER_TOKENS}"

    async def ask(self, score: Score | None, conversation: Conversation, case: Case, key: str) -> None:
        """Send one request and look for its gold in what the provider received."""
        messages = request(conversation, case)
        name = f"{self.budget}:{key}:{case.id}"
        async with self.gate:
            reply = await self.client.ask(chat_body(self.model, messages, max_tokens=ANSWER_TOKENS), key, name)
            entries = await self.client.log(name)
        if score is None:
            return
        sent: Json = entries[-1] if entries else {"body": {}, "prompt_tokens": 0}
        answered = reply.status == 200 and bool(entries)
        prompt = evidence_text(case, sent["body"]["messages"]) if answered else None
        score.add(case, prompt, sent["prompt_tokens"], self.budget, reply.mode if answered else str(reply.status))

    async def fresh(self, conversations: Sequence[Conversation], bar: Progress, task: TaskID) -> Score:
        score = Score()

        async def one(conversation: Conversation, case: Case) -> None:
            await self.ask(score, conversation, case, key_of(self.given.seed, self.budget, conversation, case.id))
            bar.advance(task)

        await asyncio.gather(*(one(c, case) for c in conversations for case in c.cases))
        return score

    async def settled(self, conversations: Sequence[Conversation], bar: Progress, task: TaskID) -> Score:
        """Fold each conversation once, wait for the embeddings, then ask; an agent's probes come in their order."""
        score = Score()
        keys = {c.name: key_of(self.given.seed, self.budget, c, "settled") for c in conversations}
        opening = [
            Case("opening", min(case.stop for case in c.cases), str(NEUTRAL["content"]), ()) for c in conversations
        ]
        await asyncio.gather(
            *(self.ask(None, c, case, keys[c.name]) for c, case in zip(conversations, opening, strict=True))
        )
        if not await self.client.wait_for_jobs(self.given.settle_seconds):
            console.print("[yellow]the background jobs were not seen to end: embeddings may be missing[/]")

        async def one(conversation: Conversation) -> None:
            for case in sorted(conversation.cases, key=lambda case: case.stop):
                await self.ask(score, conversation, case, keys[conversation.name])
                bar.advance(task)

        await asyncio.gather(*(one(conversation) for conversation in conversations))
        return score


def key_of(seed: int, budget: int, conversation: Conversation, what: str) -> str:
    """An API key, so a tenant, of its own."""
    name = f"{seed}/{budget}/{conversation.set}/{conversation.name}/{what}"
    return f"key-{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}"


def without_proxy(conversations: Sequence[Conversation], budget: int) -> dict[str, Score]:
    """Doing nothing, keep-last and BM25. No request is sent: what fits is decided by the provider's own count."""
    scores = {"direct": Score(), "keep-last": Score(), "bm25": Score()}
    for conversation in conversations:
        baselines = Baselines(conversation)
        for case in conversation.cases:
            tokens = sum(baselines.tokens[: case.stop]) + count({"messages": request_tail(case)})
            whole = text_of(conversation.messages[: case.stop]) if tokens <= budget else None
            scores["direct"].add(case, whole, tokens, budget, "direct" if whole else "400")
            scores["keep-last"].add(case, *baselines.keep_last(case, budget), budget, "keep-last")
            scores["bm25"].add(case, *baselines.bm25(case, budget), budget, "bm25")
    return scores


async def measure(given: argparse.Namespace, chosen: dict[str, list[Conversation]]) -> list[Json]:
    """All that is settled comes first: each fresh question leaves jobs of its own, which nobody waits for."""
    plans = [(name, budget) for name in chosen for budget in budgets_of(given, name)]
    windows = sorted({budget + ANSWER_TOKENS for _, budget in plans})
    scores = {plan: without_proxy(chosen[plan[0]], plan[1]) for plan in plans}
    with servers(given, windows) as (provider, infold), common.progress() as bar:
        async with connect(provider, infold) as client:
            if infold and not await client.learn_windows([f"ctx-{window}" for window in windows]):
                console.print("[yellow]the proxy did not ask for the models' windows in 10 s[/]")
            for way in reversed(given.ways) if infold else ():
                for name, budget in plans:
                    task = bar.add_task(f"{name} {budget:,} {way}", total=sum(len(c.cases) for c in chosen[name]))
                    run = Run(client, given, budget, asyncio.Semaphore(given.concurrency))
                    scores[name, budget][way] = await getattr(run, way)(chosen[name], bar, task)
                    bar.remove_task(task)
    order = ("direct", "keep-last", "bm25", *given.ways)
    return [
        {"set": name, "budget": budget, "ways": {way: s[way].mean() for way in order if way in s}}
        for (name, budget), s in scores.items()
    ]


def budgets_of(given: argparse.Namespace, name: str) -> tuple[int, ...]:
    if given.budgets:
        return tuple(int(n) for n in given.budgets.split(","))
    return (QUICK_BUDGETS if given.quick else BUDGETS).get(name, (8_192,))


def table(results: Sequence[Json]) -> Table:
    drawn = Table(title_justify="left")
    heads = (
        "set",
        "B tokens",
        "way",
        "N",
        "recall",
        "all",
        "recall as sent",
        "all as sent",
        "tokens",
        "refused",
        "aim",
    )
    for head in heads:
        drawn.add_column(head, justify="left" if head in ("set", "way") else "right")
    for row in results:
        for way, s in row["ways"].items():
            aim = AIMS.get((row["set"], row["budget"])) if way == "fresh" else None
            shares = [f"{s[key]:.3f}" for key in ("recall", "all", "recall_as_sent", "all_as_sent")]
            aims = f"{aim[0]:.2f} / {aim[1]:.2f}" if aim else ""
            drawn.add_row(
                row["set"], f"{row['budget']:,}", way, f"{s['questions']:,}", *shares, f"{s['tokens']:,}",
                f"{s['refused']:,}", aims,
            )  # fmt: skip
        drawn.add_section()
    return drawn


def odd_modes(results: Sequence[Json]) -> list[str]:
    """What was answered neither as a wire nor folded, or with another status, as lines to read."""
    return [
        f"{row['set']} at {row['budget']:,}, {way}: {number:,} times {mode}"
        for row in results
        for way in ("fresh", "settled")
        for mode, number in row["ways"].get(way, {"modes": {}})["modes"].items()
        if mode not in ("wire", "folded")
    ]


def checks(results: Sequence[Json]) -> dict[str, bool]:
    """What must hold on any data; shares may be off by one question more, so few questions do not cry wolf."""
    held = {}
    for row in results:
        where, ways = f"{row['set']} at {row['budget']:,}", row["ways"]
        one = 1 / max(1, ways["keep-last"]["questions"])
        held[f"{where}: keep-last finds less than everything"] = ways["keep-last"]["recall"] < 1
        for way in ("fresh", "settled"):
            if way in ways:
                held[f"{where}, {way}: all answered"] = ways[way]["refused"] == 0
                held[f"{where}, {way}: every prompt within the budget"] = ways[way]["over_window"] == 0
                degraded = ways[way]["modes"].get("degraded", 0) / ways[way]["questions"]
                held[f"{where}, {way}: memory was at hand, but for 1 in 20"] = degraded <= 0.05
                near = ways[way]["recall"] >= ways["keep-last"]["recall"] - 0.02 - one
                held[f"{where}, {way}: recall at most .02 below keep-last"] = near
        if "fresh" in ways and "settled" in ways:
            near = ways["settled"]["recall"] >= ways["fresh"]["recall"] - 0.06 - one
            held[f"{where}: settled at most .06 below fresh"] = near
    return held


EXAMPLES = """\
  python benchmarks/evidence.py --quick
  INFOLD_BENCH_DATA=~/data python benchmarks/evidence.py --sets locomo,qmsum --limit 50
  INFOLD_BENCH_DATA=~/data python benchmarks/evidence.py --budgets 2048,8192 --ways fresh --save"""


def parse() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--sets", default="", help="names with commas between (default: all in INFOLD_BENCH_DATA, else the sample)"
    )
    parser.add_argument("--budgets", default="", help="B in tokens, with commas between (default: by set)")
    parser.add_argument("--ways", default="fresh,settled", help="fresh, settled or both (default)")
    parser.add_argument("--limit", type=int, help="at most N questions of a set, drawn with the seed")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (default 4)")
    parser.add_argument(
        "--settle-seconds", type=float, default=1_800, help="how long to wait for embeddings (default 1,800)"
    )
    given = parser.parse_args()
    given.ways = [way for way in ("fresh", "settled") if way in given.ways.split(",")]
    if given.quick:
        given.limit, given.settle_seconds = given.limit or 10, min(given.settle_seconds, 60)
    return given


def main() -> int:
    given = parse()
    about = common.header("evidence", "is what an answer needs in the prompt?", given)
    names = data.sets([name for name in given.sets.split(",") if name])
    chosen = {name: data.sample_cases(data.load(name), given.limit, random.Random(given.seed)) for name in names}
    for name, conversations in chosen.items():
        asked = sum(len(c.cases) for c in conversations)
        console.print(
            f"[dim]{name:>17}[/]  {len(conversations):,} conversations, N = {asked:,} with evidence", highlight=False
        )
    results = asyncio.run(measure(given, chosen))
    console.print(table(results))
    for line in odd_modes(results):
        console.print(f"[yellow]{line}[/]", highlight=False)
    if given.save:
        common.save(about, {"sets": results})
    return common.verdict(given, checks(results))


if __name__ == "__main__":
    sys.exit(main())
