"""What a session costs through Infold and without it.

Agent sessions and chats are replayed request by request against a provider that models prefix caching (provider.py).
Each assistant message of a transcript is one request's answer; the client then sends it back with what follows, as
agents do. Infold sees a model with a window of 32,768 tokens; direct, which is doing nothing, is the same without a
window: a real one would have refused those requests.

  bill     = uncached input + cached input x price of a cached read, in tokens of uncached input
  agents   `swe-java` transcripts, four chained; generated sessions of 60 steps; `tau-airline`, four chained
  chats    BEAM and LoCoMo, turn by turn, in rows of their own with the price of re-injected blocks beside them

A rollover is a forwarded prompt that does not begin with the previous one, its re-injected block aside. Their bound is
1.3 x (tokens added / (trigger - target)).
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import common
import data
import orjson
from client import Client, connect
from common import console
from data import Conversation, Json
from provider import count_each, count_tools
from rich.progress import Progress, TaskID
from rich.table import Table
from servers import servers

WINDOW = 32_768  # tokens
ENDLESS = "ctx-10000000"
CACHED = (0.1, 0.5)  # price of a cached token beside an uncached one
AGENTS = ("swe-java", "tau-airline")
CHATS = ("beam-100k", "beam-500k", "locomo", "longmemeval-mini")
BLOCK = "<earlier-messages id="  # how a re-injected block begins
LONG_REQUESTS, LONG_WINDOWS = 60, 2
BOUND = 1.3


@dataclass(slots=True)
class Bill:
    """Input of one session's requests, in tokens."""

    requests: int = 0
    tokens: int = 0
    cached: int = 0
    refused: int = 0

    def add(self, prompt: int, cached: int) -> None:
        self.requests += 1
        self.tokens += prompt
        self.cached += cached

    def at(self, cached_price: float) -> float:
        return self.tokens - self.cached + self.cached * cached_price


@dataclass(slots=True)
class Watch:
    """What changes from one forwarded prompt to the next: rollovers, blocks, tokens added."""

    rollovers: int = 0
    largest_rollover: int = 0  # tokens of the prompt that it made
    stayed: int = 0  # tokens of blocks that stayed in the prompt
    blocks: int = 0  # different ones
    block_tokens: int = 0  # of these, once each
    block_resent: int = 0  # tokens of a block that was sent before, summed over the requests
    previous: list[Json] = field(default_factory=list)

    def see(self, prompt: list[Json], tokens: int) -> None:
        found, before = block_place(prompt), block_place(self.previous)
        if found is not None:
            size = sum(count_each([prompt[found]]))
            if before is not None and self.previous[before] == prompt[found]:
                self.block_resent += size
            else:
                self.blocks += 1
                self.block_tokens += size
        if not continues(self.previous, prompt):
            self.rollovers += 1
            self.largest_rollover = max(self.largest_rollover, tokens)
        elif before is not None and newest_user(prompt) > newest_user(self.previous) and starts(prompt, self.previous):
            self.stayed += sum(count_each([self.previous[before]]))
        self.previous = prompt


def starts(prompt: Sequence[Json], opening: Sequence[Json]) -> bool:
    return list(prompt[: len(opening)]) == list(opening)


def continues(previous: list[Json], prompt: list[Json]) -> bool:
    """Whether the prompt begins with the previous one; its newest block may be gone or cut."""
    at = block_place(previous)
    if at is None or starts(prompt, previous):
        return starts(prompt, previous)
    without = previous[:at] + previous[at + 1 :]
    cut = len(prompt) > at and is_block(prompt[at]) and starts(prompt[:at] + prompt[at + 1 :], without)
    return starts(prompt, without) or cut


def is_block(message: Json) -> bool:
    content = message.get("content")
    return isinstance(content, str) and content.startswith(BLOCK)


def newest_user(prompt: Sequence[Json]) -> int:
    """Where the newest user message stands; -1 for none."""
    rows = (i for i in range(len(prompt) - 1, -1, -1) if prompt[i]["role"] == "user" and not is_block(prompt[i]))
    return next(rows, -1)


def block_place(prompt: Sequence[Json]) -> int | None:
    """Where the block of the newest user message stands: directly before it. None: it has none."""
    before = newest_user(prompt) - 1
    return before if before >= 0 and is_block(prompt[before]) else None


@dataclass(frozen=True, slots=True)
class Outcome:
    session: Conversation
    kind: str  # "agent" or "chat"
    tokens: int  # of all its messages and tools
    front: int  # of tools and the system messages before the first user message
    direct: Bill
    infold: Bill | None
    watch: Watch

    @property
    def windows(self) -> float:
        return self.tokens / WINDOW

    @property
    def long(self) -> bool:
        return self.kind == "agent" and self.direct.requests >= LONG_REQUESTS and self.windows >= LONG_WINDOWS

    def ratio(self, cached_price: float) -> float:
        return self.infold.at(cached_price) / self.direct.at(cached_price) if self.infold else float("nan")

    @property
    def bound(self) -> float:
        """1.3 x (tokens added / (trigger - target)) for a request that states no `max_tokens`."""
        limit = WINDOW - max(1_024, WINDOW // 8) - WINDOW // 100
        trigger = min(0.75 * WINDOW, 0.95 * limit)
        target = max(min(0.25 * WINDOW, 0.5 * limit), self.front + 0.1 * limit)
        return BOUND * (self.tokens + self.watch.stayed) / (trigger - target)

    def one_rollover(self, cached_price: float) -> float:
        """What writing the prompt of the dearest rollover anew costs beside reading it from the cache."""
        return self.watch.largest_rollover * (1 - cached_price)

    def block_price(self, cached_price: float) -> float:
        return self.watch.block_tokens + self.watch.block_resent * cached_price

    def row(self) -> Json:
        row: Json = {"session": self.session.name, "kind": self.kind, "requests": self.direct.requests}
        row |= {
            "tokens": self.tokens,
            "windows": round(self.windows, 2),
            "long": self.long,
            "direct": bill_row(self.direct),
        }
        if self.infold:
            row |= {"infold": bill_row(self.infold), "bound": round(self.bound, 2), "rollovers": self.watch.rollovers}
            row |= {"blocks": self.watch.blocks, "block_tokens": self.watch.block_tokens}
            row |= {f"block_price_{price}": round(self.block_price(price)) for price in CACHED}
            row |= {f"ratio_{price}": round(self.ratio(price), 4) for price in CACHED}
            row |= {"ratio_tokens": round(self.infold.tokens / self.direct.tokens, 4)}
        return row


def bill_row(bill: Bill) -> Json:
    row: Json = {"input_tokens": bill.tokens, "cached_tokens": bill.cached, "refused": bill.refused}
    return row | {f"bill_{price}": round(bill.at(price)) for price in CACHED}


@dataclass(frozen=True, slots=True)
class Replay:
    """One session, replayed."""

    client: Client
    provider: str
    session: Conversation
    seed: int

    def steps(self) -> list[int]:
        """Where the assistant's messages stand; the request for one is all before it."""
        return [i for i, message in enumerate(self.session.messages) if message["role"] == "assistant" and i]

    def body(self, model: str, parts: Sequence[bytes], stop: int) -> bytes:
        tools = b'"tools":%b,' % orjson.dumps(self.session.tools) if self.session.tools else b""
        return b'{"model":"%b",%b"messages":[%b]}' % (model.encode(), tools, b",".join(parts[:stop]))

    async def run(self, model: str, key: str, bill: Bill, watch: Watch | None, bar: Progress, task: TaskID) -> None:
        """Send the session's requests in order; each is answered with the transcript's own next message."""
        parts = [orjson.dumps(message) for message in self.session.messages]
        client = self.client if watch else Client(self.client.session, self.provider, self.provider)
        for step in self.steps():
            name = f"{key}:{step}"
            await client.script({name: self.session.messages[step]})
            body = self.body(model, parts, step)
            reply = await client.ask(body, key, name if watch else "", **{"x-script-reply": name})
            bill.refused += reply.status != 200
            if watch is None and reply.status == 200:
                usage = orjson.loads(reply.body)["usage"]
                bill.add(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
            for entry in await client.log(name) if watch else ():
                if entry["status"] == 200 and watch:
                    bill.add(entry["prompt_tokens"], entry["cached_tokens"])
                    watch.see(entry["body"]["messages"], entry["prompt_tokens"])
            bar.advance(task)

    async def outcome(self, kind: str, through_proxy: bool, bar: Progress, task: TaskID) -> Outcome:
        direct, infold, watch = Bill(), Bill(), Watch()
        name = f"key-{self.seed}-{self.session.name.replace(' ', '-')}"
        await self.run(ENDLESS, f"{name}-direct", direct, None, bar, task)
        if through_proxy:
            await self.run(f"ctx-{WINDOW}", name, infold, watch, bar, task)
        tokens, tools = count_each(self.session.messages), count_tools(self.session.tools)
        front = next((i for i, m in enumerate(self.session.messages) if m["role"] != "system"), 0)
        whole = sum(tokens) + tools
        return Outcome(
            self.session, kind, whole, sum(tokens[:front]) + tools, direct, infold if through_proxy else None, watch
        )


def sessions(given: argparse.Namespace) -> list[tuple[str, Conversation]]:
    """The sessions to replay with their kind; what the data folder lacks is left out."""
    there = set(data.sets())
    rng = random.Random(given.seed)
    found: list[tuple[str, Conversation]] = []
    if "generated" in given.kinds:
        found += [("agent", data.generated(given.seed * 100 + n)) for n in range(given.sessions)]
    for name in AGENTS:
        if name in there and name in given.kinds:
            chains = data.chained(data.load(name), 4, rng)
            found += [("agent", chain) for chain, _ in zip(chains, range(given.sessions), strict=False)]
    for name in CHATS:
        if name in there and name in given.kinds:
            chats = data.load(name)
            found += [("chat", chat) for chat in rng.sample(chats, min(given.chats, len(chats)))]
    return found


async def measure(given: argparse.Namespace, chosen: Sequence[tuple[str, Conversation]]) -> list[Outcome]:
    with servers(given, (WINDOW,)) as (provider, infold), common.progress() as bar:
        async with connect(provider, infold) as client:
            if infold and not await client.learn_windows([f"ctx-{WINDOW}"]):
                console.print("[yellow]the proxy did not ask for the models' windows in 10 s[/]")
            gate = asyncio.Semaphore(given.concurrency)

            async def one(kind: str, session: Conversation) -> Outcome:
                async with gate:
                    replay = Replay(client, provider.url, session, given.seed)
                    task = bar.add_task(session.name, total=len(replay.steps()) * (2 if infold else 1))
                    outcome = await replay.outcome(kind, infold is not None, bar, task)
                    bar.remove_task(task)
                    return outcome

            return list(await asyncio.gather(*(one(kind, session) for kind, session in chosen)))


def table(outcomes: Sequence[Outcome]) -> Table:
    drawn = Table()
    drawn.add_column("session")
    sizes, bills = ("requests", "windows", "direct Mtok"), ("infold", "bill x0.1", "x0.5")
    for head in (*sizes, *bills, "rollovers", "bound", "blocks", "their price x0.1"):
        drawn.add_column(head, justify="right")
    for o in outcomes:
        cells = [o.session.name, f"{o.direct.requests:,}", f"{o.windows:.1f}", f"{o.direct.tokens / 1e6:.2f}"]
        if o.infold:
            cells += [f"{o.infold.tokens / o.direct.tokens:.1%}", *(f"{o.ratio(price):.1%}" for price in CACHED)]
            cells += [
                str(o.watch.rollovers),
                f"{o.bound:.1f}",
                f"{o.watch.blocks:,}",
                f"{o.block_price(0.1) / o.direct.at(0.1):.1%}",
            ]
        drawn.add_row(*cells)
    return drawn


def sums(outcomes: Sequence[Outcome]) -> Json:
    """Ratios of sums for long agent sessions, shorter ones, and chats."""
    groups = {
        "agents, long": [o for o in outcomes if o.long],
        "agents, shorter": [o for o in outcomes if o.kind == "agent" and not o.long],
        "chats": [o for o in outcomes if o.kind == "chat"],
    }
    found: Json = {}
    for name, group in groups.items():
        if not group:
            continue
        tokens = sum(o.direct.tokens for o in group)
        row: Json = {"sessions": len(group), "direct_input_tokens": tokens}
        row |= {f"direct_bill_{price}": round(sum(o.direct.at(price) for o in group)) for price in CACHED}
        through = [(o, o.infold) for o in group if o.infold]
        if through:
            row["tokens"] = round(sum(bill.tokens for _, bill in through) / tokens, 4)
            for price in CACHED:
                direct = sum(o.direct.at(price) for o in group)
                row[f"bill_{price}"] = round(sum(bill.at(price) for _, bill in through) / direct, 4)
                row[f"blocks_{price}"] = round(sum(o.block_price(price) for o, _ in through) / direct, 4)
        found[name] = row
    return found


def checks(outcomes: Sequence[Outcome], summed: Json) -> dict[str, bool]:
    held = {"direct: all answered": not any(o.direct.refused for o in outcomes)}
    if not any(o.infold for o in outcomes):
        return held
    held["all answered"] = not any(o.infold.refused for o in outcomes if o.infold)
    held["rollovers within their bound"] = all(o.watch.rollovers <= max(1.0, o.bound) for o in outcomes)
    if "agents, long" in summed:
        row = summed["agents, long"]
        held["long agent sessions: bill at 0.1x at most 80 % of direct"] = row["bill_0.1"] <= 0.80
        held["long agent sessions: bill at 0.5x at most 55 %"] = row["bill_0.5"] <= 0.55
        held["long agent sessions: tokens at most 60 %"] = row["tokens"] <= 0.60
        held["no long agent session dearer than direct"] = all(
            o.ratio(p) <= 1 for o in outcomes if o.long for p in CACHED
        )
    shorter = [(o, o.infold) for o in outcomes if o.infold and o.kind == "agent" and not o.long]
    within = all(bill.at(p) <= o.direct.at(p) + o.one_rollover(p) for o, bill in shorter for p in CACHED)
    held["shorter agent sessions dearer by at most one rollover"] = within
    return held


EXAMPLES = """\
  python benchmarks/bill.py --quick
  INFOLD_BENCH_DATA=~/data python benchmarks/bill.py --save
  python benchmarks/bill.py --kinds generated --sessions 8 --seed 3"""


def parse() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    kinds = ",".join(("generated", "swe-java", "beam-100k", "locomo"))
    parser.add_argument(
        "--kinds", default=kinds, help=f"of {', '.join(('generated', *AGENTS, *CHATS))} (default {kinds})"
    )
    parser.add_argument("--sessions", type=int, default=4, help="agent sessions of each kind (default 4)")
    parser.add_argument("--chats", type=int, default=2, help="chats of each set (default 2)")
    parser.add_argument("--concurrency", type=int, default=2, help="sessions at a time (default 2)")
    given = parser.parse_args()
    if given.quick:
        given.kinds, given.sessions = "generated,tau-airline", 1
    given.kinds = given.kinds.split(",")
    return given


def main() -> int:
    given = parse()
    about = common.header("bill", "what does a session's input cost?", given, window=WINDOW)
    chosen = sessions(given)
    console.print(f"[dim]{'N':>9}[/]  {len(chosen)} sessions", highlight=False)
    outcomes = asyncio.run(measure(given, chosen))
    summed = sums(outcomes)
    console.print(table(outcomes))
    console.print("sums, as shares of direct")
    console.print_json(json.dumps(summed))
    if given.save:
        common.save(about, {"sessions": [o.row() for o in outcomes], "sums": summed})
    return common.verdict(given, checks(outcomes, summed))


if __name__ == "__main__":
    sys.exit(main())
