"""Is anything lost or doubled when a process is killed under load?

Each cycle waits until at least 50 turns are in flight, plain and streaming, and kills one process with SIGKILL: a web
worker, the job worker, PostgreSQL's postmaster, in turn (`--targets` can add `parent`, which takes all with it; then
the command is started again). The next cycle begins when the proxy is ready.

A turn is acknowledged when its client has seen the last byte: `[DONE]` of a stream, all of a plain answer. At the end
the export is read: each acknowledged turn must be in it once, with its user message and its answer once each.

  lost    acknowledged, and the turn, its message or its answer is not in the export
  twice   a turn, a user message or an answer that is in the export more than once

Doing nothing, the provider alone, records no turn: all that it acknowledged are lost.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import common
import orjson
from client import Client, connect
from common import console
from data import Json
from processes import kill, stat
from rich.progress import Progress, TaskID
from rich.table import Table
from servers import Server, family, servers

KEY = "key-kills-of-one-tenant"
TARGETS = ("web", "worker", "postgres")
MODEL = "ctx-131072"
PACE_MS = 15  # between the chunks of a stream
PLAIN_MS = 250  # before a plain answer
LEAST_SECONDS, MOST_SECONDS = 0.3, 10.0  # of load before a kill


@dataclass(frozen=True, slots=True)
class Seen:
    """A turn whose end the client saw."""

    marker: str  # in its user message; its answer is `answer <marker> ...`
    turn: str | None  # x-infold-turn


@dataclass(slots=True)
class Load:
    """Clients that talk without pause, each turn in a conversation of its own or after earlier ones."""

    client: Client
    rng: random.Random
    in_flight: int = 0
    sent: int = 0
    cut: int = 0  # turns whose end was not seen
    seen: list[Seen] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    running: bool = True

    async def lane(self, number: int) -> None:
        """One client: conversations of up to four turns, streaming or plain."""
        while self.running:
            messages: list[Json] = []
            for _ in range(self.rng.randint(1, 4)):
                marker = f"mark-{number}-{self.sent}-{self.rng.getrandbits(48):012x}"
                answer = f"answer {marker} " + "word " * self.rng.randint(2, 20)
                messages.append({"role": "user", "content": f"Turn {marker}. reply: {answer.strip()}"})
                self.sent += 1
                said = await self.turn(messages, marker, stream=self.rng.random() < 0.6)
                if said is None or not self.running:
                    break
                messages.append({"role": "assistant", "content": said})

    async def turn(self, messages: Sequence[Json], marker: str, stream: bool) -> str | None:
        """Send one turn; its answer's text, or None when its end was not seen."""
        body = orjson.dumps({"model": MODEL, "messages": messages, "stream": stream, "max_tokens": 500})
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        headers["x-script-pace"] = str(PACE_MS if stream else PLAIN_MS)
        self.in_flight += 1
        try:
            url = f"{self.client.base}/v1/chat/completions"
            async with self.client.session.post(url, data=body, headers=headers) as answer:
                raw = await answer.read()
                text = spoken(raw, stream) if answer.status == 200 else None
                if text is not None:
                    self.seen.append(Seen(marker, answer.headers.get("x-infold-turn")))
                    self.modes[answer.headers.get("x-infold-mode", "direct")] += 1
                    return text
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(0.05)  # the server is gone for a moment
        finally:
            self.in_flight -= 1
        self.cut += 1
        return None


def spoken(raw: bytes, stream: bool) -> str | None:
    """The text of an answer whose end is there; None for one that was cut."""
    try:
        if not stream:
            return str(orjson.loads(raw)["choices"][0]["message"]["content"])
        if not raw.rstrip().endswith(b"data: [DONE]"):
            return None
        events = [orjson.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    except (orjson.JSONDecodeError, KeyError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class Cycle:
    target: str
    in_flight: int
    seconds_to_ready: float


async def cycle(server: Server, load: Load, target: str, least: int) -> Cycle:
    """Wait for enough turns in flight, kill, wait until the proxy is ready again.

    Raises:
        SystemExit: the proxy is not ready again in time.
    """
    began = time.monotonic()
    wait = LEAST_SECONDS + load.rng.random() * LEAST_SECONDS
    while load.in_flight < least or time.monotonic() - began < wait:
        if time.monotonic() - began > MOST_SECONDS:
            break
        await asyncio.sleep(0.002)
    everybody = family(server)
    victims = getattr(everybody, target)
    in_flight = load.in_flight
    killed = time.monotonic()
    if not victims:
        raise SystemExit(f"found no {target} process below the serve command")
    kill(victims[0])
    if target == "parent":
        assert server.process is not None
        await asyncio.to_thread(server.process.wait, 30)
        while any(stat(pid) for pid in (*everybody.web, *everybody.worker, *everybody.postgres)):
            await asyncio.sleep(0.05)  # its children go by themselves; before that the port is theirs
        await asyncio.to_thread(server.start)
    else:
        await asyncio.sleep(0.3)  # the death shows
        await asyncio.to_thread(server.wait_ready)
    return Cycle(target, in_flight, time.monotonic() - killed)


@dataclass(frozen=True, slots=True)
class Account:
    """What the export says about the acknowledged turns."""

    acknowledged: int
    lost: dict[str, str]  # marker -> what is not there
    twice: tuple[str, ...]  # markers and turn ids
    turns: int  # in the export
    statuses: dict[str, int]


def account(seen: Sequence[Seen], export: Sequence[Json]) -> Account:
    """Compare what clients saw with what was kept. Pure.

    A message counts by its text and role; a conversation's earlier messages are not sent as new ones, so each marker
    stands in one user message and one answer.
    """
    asked: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    turns: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for line in export:
        words = str(line.get("content") or "").split(maxsplit=2)
        if line["kind"] == "turn":
            turns[line["id"]] += 1
            statuses[line["status"]] += 1
        elif line["kind"] == "message" and len(words) > 1:
            (asked if line["role"] == "user" else answered)[words[1].rstrip(".")] += 1
    lost: dict[str, str] = {}
    for s in seen:
        there = {"message": asked[s.marker], "answer": answered[s.marker], "turn": s.turn and turns[s.turn]}
        if not all(there.values()):
            lost[s.marker] = "no " + ", ".join(what for what, times in there.items() if not times)
    twice = [s.marker for s in seen if asked[s.marker] > 1 or answered[s.marker] > 1]
    twice += [turn for turn, times in turns.items() if times > 1]
    twice += [turn for turn, times in Counter(s.turn for s in seen if s.turn).items() if times > 1]
    return Account(len(seen), lost, tuple(twice), sum(turns.values()), dict(statuses))


async def settled(client: Client, seen: Sequence[Seen], seconds: float) -> tuple[Account, float]:
    """Read the export until nothing is lost, as what was spooled reaches the database later; and how long that took."""
    began = time.monotonic()
    while True:
        lines = (await client.get("/memory-manager/export", KEY)).splitlines()
        found, waited = account(seen, [orjson.loads(line) for line in lines if line]), time.monotonic() - began
        if not found.lost or waited > seconds:
            return found, waited
        await asyncio.sleep(1.0)


async def measure(given: argparse.Namespace) -> tuple[list[Cycle], Load, Account, float]:
    with servers(given) as (provider, infold), common.progress() as bar:
        async with connect(provider, infold, connections=given.lanes + 8) as client:
            load = Load(client, random.Random(given.seed))
            lanes = [asyncio.create_task(load.lane(number)) for number in range(given.lanes)]
            try:
                cycles = await all_cycles(given, infold, load, bar, bar.add_task("killing", total=given.cycles))
            finally:
                load.running = False
                await asyncio.gather(*lanes)
            if infold is None:
                return cycles, load, account(load.seen, []), 0.0
            return cycles, load, *await settled(client, load.seen, given.settle_seconds)


async def all_cycles(
    given: argparse.Namespace, infold: Server | None, load: Load, bar: Progress, task: TaskID
) -> list[Cycle]:
    if infold is None:
        await asyncio.sleep(2.0)
        return []
    cycles = []
    for number in range(given.cycles):
        cycles.append(await cycle(infold, load, given.targets[number % len(given.targets)], given.in_flight))
        bar.advance(task)
    await asyncio.sleep(LEAST_SECONDS)
    return cycles


def table(cycles: Sequence[Cycle]) -> Table:
    drawn = Table()
    for head in ("killed", "times", "turns in flight, least", "s to ready, median", "max"):
        drawn.add_column(head, justify="left" if head == "killed" else "right")
    for target in dict.fromkeys(c.target for c in cycles):
        own = [c for c in cycles if c.target == target]
        seconds = [c.seconds_to_ready for c in own]
        least = str(min(c.in_flight for c in own))
        drawn.add_row(target, str(len(own)), least, f"{common.median(seconds):.2f}", f"{max(seconds):.2f}")
    return drawn


EXAMPLES = """\
  python benchmarks/kills.py --quick
  python benchmarks/kills.py --cycles 20 --save
  python benchmarks/kills.py --targets web,worker,postgres,parent --seed 7"""


def parse() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    parser.add_argument("--cycles", type=int, help="kills (default 20; 3 with --quick)")
    parser.add_argument("--targets", default=",".join(TARGETS), help="web, worker, postgres, parent; in turn")
    parser.add_argument("--in-flight", type=int, default=50, help="turns in flight at a kill, at least (default 50)")
    parser.add_argument("--lanes", type=int, default=80, help="clients that talk without pause (default 80)")
    parser.add_argument("--settle-seconds", type=float, default=30, help="for spooled turns at the end (default 30)")
    given = parser.parse_args()
    given.cycles = given.cycles or (3 if given.quick else 20)
    given.targets = given.targets.split(",")
    if wrong := set(given.targets) - {*TARGETS, "parent"}:
        parser.error(f"unknown targets {', '.join(sorted(wrong))}; known are {', '.join(TARGETS)}, parent")
    return given


def main() -> int:
    given = parse()
    about = common.header("kills", "is anything lost or doubled under kill -9?", given, N=f"{given.cycles} kills")
    cycles, load, found, waited = asyncio.run(measure(given))
    if cycles:
        console.print(table(cycles))
    console.print(
        f"[bold]{found.acknowledged:,} acknowledged, {len(found.lost):,} lost, {len(found.twice):,} twice[/]; "
        f"{load.sent:,} sent, {load.cut:,} cut; {found.turns:,} turns in the export {found.statuses}; "
        f"modes {dict(load.modes)}; export read until {waited:.1f} s after the load",
        highlight=False,
    )
    if not given.direct:
        for marker, what in list(found.lost.items())[:8]:
            console.print(f"lost: {marker}, {what}", highlight=False)
        for name in found.twice[:8]:
            console.print(f"twice: {name}", highlight=False)
    if given.save:
        told = [{"target": c.target, "in_flight": c.in_flight, "s": round(c.seconds_to_ready, 3)} for c in cycles]
        counts = {"acknowledged": found.acknowledged, "lost": len(found.lost), "twice": len(found.twice)}
        counts["settled_seconds"] = round(waited)
        common.save(about, {**counts, "sent": load.sent, "cut": load.cut, "statuses": found.statuses, "cycles": told})
    if given.direct:
        return common.verdict(given, {"the provider answered": found.acknowledged > 0})
    enough = all(c.in_flight >= given.in_flight for c in cycles)
    held = {"turns were acknowledged": found.acknowledged > 0, "0 lost": not found.lost, "0 twice": not found.twice}
    return common.verdict(given, {**held, f"at least {given.in_flight} turns in flight at each kill": enough})


if __name__ == "__main__":
    sys.exit(main())
