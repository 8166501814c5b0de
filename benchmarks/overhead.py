"""What Infold adds to a request: latency, CPU, memory, paired with the same provider directly.

Each row asks the provider directly and through Infold in turn for the same body and takes the difference within the
pair; the provider answers without looking at the body, so its own work does not depend on the length. Web worker and
PostgreSQL share one core, provider, load and job worker the other. Milliseconds move from run to run and machine to
machine: trust ratios within a run, and the load average in the header.

  1 KB               a wire, recorded
  120 KB, 500 KB     folded histories, sent again with the answer and its tool result under the same user message: no
                     new search
  search             120 KB folded, and a new user message each time
  end of answer      from the first byte of a 1 KB answer to its last, beside a bare durable insert of 2 KB in the same
                     database
  req/s, CPU         32 connections at 1 KB; streams of 100 chunks; beside them the least that a proxy in Python can be
                     (`bare.py`), which tells machines apart: the aims are of one where it takes 0.025 ms a request
  stall              longest silence of a paced stream while cold histories of 500 KB arrive, beside the same directly
  memory             idle, and after a million tokens
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import common
import data
import orjson
from client import connect
from common import console, median, percentile
from data import Json
from processes import cpu_seconds, memory_mb
from rich.table import Table
from servers import Family, Server, bare_server, family, servers
from wire import Connection, Timing, closed_loop, in_background

FAST = {"x-script-fast": "1", "x-script-reply": "1KB"}
STEPS_KNOWN = 1_010  # of a loop, whose answers the provider is told beforehand
REPLY = {"role": "assistant", "content": ("The release notes say what changed, and why it was changed. " * 20)[:1_000]}
INSERT_BYTES = 2_048  # of the row that a bare durable insert writes
MILLISECOND = 1e3
WINDOWS = (8_192, 131_072)
BARE_MS = 0.025  # CPU of such a relay a request on the machine that the aims were set on: 0.021 to 0.028
QUIET_MS = 0.3  # to the first byte of 1 KB, asked directly on a quiet machine


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and what the provider is to answer: in a loop the message that the next request brings back."""

    body: bytes
    reply: str = "1KB"
    chunks: int = 0  # in which it is streamed

    @property
    def headers(self) -> Mapping[str, str]:
        return FAST | {"x-script-reply": self.reply, "x-script-chunks": str(self.chunks)}


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds, pair by pair."""

    name: str
    direct: Sequence[float]
    infold: Sequence[float] = ()
    aim_ms: float | None = None  # of the added p50
    mode: str = ""
    note: str = ""

    @property
    def added(self) -> list[float]:
        return [through - direct for direct, through in zip(self.direct, self.infold, strict=False)]

    def facts(self) -> Json:
        facts: Json = {"pairs": len(self.direct), "mode": self.mode, "aim_ms": self.aim_ms, "note": self.note}
        for name, values in (("direct", self.direct), ("infold", self.infold), ("added", self.added)):
            if values:
                facts |= {f"{name}_p{p}_ms": round(percentile(values, p / 100) * MILLISECOND, 3) for p in (50, 99)}
        return facts


@dataclass(slots=True)
class Bench:
    """The two servers, one connection to each, and the dials."""

    given: argparse.Namespace
    provider: Server
    infold: Server | None
    rows: list[Row] = field(default_factory=list)
    facts: Json = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def quick(self) -> bool:
        return bool(self.given.quick)

    def pairs(self, asks: Iterator[Ask], n: int, key: str, warm: int = 3) -> tuple[list[Timing], list[Timing]]:
        """Ask both the same, in turns that swap; the first `warm` are not kept."""
        ways = [Connection(self.provider.url, key), *([Connection(self.infold.url, key)] if self.infold else [])]
        kept: tuple[list[Timing], list[Timing]] = ([], [])
        for number, ask in zip(range(n + warm), asks, strict=False):
            order = range(len(ways)) if number % 2 else reversed(range(len(ways)))
            for way in order:
                timing = ways[way].ask(ask.body, ask.headers)
                if timing.status != 200:
                    self.failures.append(f"status {timing.status}")
                if number >= warm:
                    kept[way].append(timing)
        for connection in ways:
            connection.close()
        return kept

    def first_bytes(self, name: str, asks: Iterator[Ask], n: int, key: str, aim_ms: float, note: str = "") -> Row:
        direct, through = self.pairs(asks, n, key)
        modes = sorted({timing.headers.get("x-infold-mode", "none") for timing in through})
        row = Row(name, [t.first for t in direct], [t.first for t in through], aim_ms, "+".join(modes), note)
        self.rows.append(row)
        return row


def small(model: str = "ctx-131072", stream: bool = False) -> Callable[[int], bytes]:
    """Bodies of 1 KB, never the same twice."""
    text = ("Summarise the release notes below in three sentences. " * 16)[:820]

    def body(number: int) -> bytes:
        messages = [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": f"{text} {number:09d}"},
        ]
        return orjson.dumps({"model": model, "stream": stream, "temperature": 0.2, "messages": messages})

    return body


def history(seed: int, kilobytes: int) -> list[Json]:
    """An agent session that ends with a tool's result, of that size as JSON."""
    steps = max(4, kilobytes // 4)
    session = data.generated(seed, steps, 5_000, steps)
    messages, size, kept = session.messages[:-1], 0, []
    for message in messages:
        size += len(orjson.dumps(message)) + 1
        if size > kilobytes * 1_000 and message["role"] == "assistant":
            break
        kept.append(message)
    return kept


def loop_asks(base: Sequence[Json], model: str) -> Iterator[Ask]:
    """The history again and again, each time with the call that was answered and its small result, under the same user
    message."""
    parts = [orjson.dumps(message) for message in base]
    for number in range(STEPS_KNOWN):
        yield Ask(join(parts, model), f"call {number}")
        result = {"role": "tool", "tool_call_id": call_id(number), "content": f"ok {number}"}
        parts += [orjson.dumps(call(number)), orjson.dumps(result)]


def search_asks(base: Sequence[Json], model: str) -> Iterator[Ask]:
    """The history with the answer and a new question each time."""
    parts = [orjson.dumps(message) for message in base]
    for number in range(STEPS_KNOWN):
        noun = data.NOUNS[number % len(data.NOUNS)]
        question = f"Which ticket was the {noun} about, and what did the tests of step {number} print?"
        parts.append(orjson.dumps({"role": "user", "content": question}))
        yield Ask(join(parts, model), f"done {number}")
        parts.append(orjson.dumps(done(number)))


def call_id(number: int) -> str:
    return f"call_{number:09d}"


def call(number: int) -> Json:
    function = {"name": "run_shell", "arguments": '{"command":"make check"}'}
    asked = {"id": call_id(number), "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [asked]}


def done(number: int) -> Json:
    return {"role": "assistant", "content": f"That is done ({number})."}


def join(parts: Sequence[bytes], model: str) -> bytes:
    return b'{"model":"%b","max_tokens":256,"messages":[%b]}' % (model.encode(), b",".join(parts))


def latencies(bench: Bench) -> None:
    n = 60 if bench.quick else 1_000
    body = small()
    numbers = iter(range(10**9))
    bench.first_bytes("1 KB", (Ask(body(number)) for number in numbers), n, "key-small", 0.7)
    middle, large = history(1, 120), history(2, 500)
    n = 20 if bench.quick else 100
    bench.first_bytes("120 KB, 8k window", loop_asks(middle, "ctx-8192"), n, "key-120", 2)
    bench.first_bytes("500 KB, 128k window", loop_asks(large, "ctx-131072"), n, "key-500", 4)
    embedding = embedding_seconds(bench)
    aim, note = 10 + embedding * MILLISECOND, f"of which the question's embedding {embedding * MILLISECOND:.1f} ms"
    bench.first_bytes("120 KB, a new search", search_asks(middle, "ctx-8192"), n, "key-search", aim, note)


def embedding_seconds(bench: Bench) -> float:
    """What embedding one question takes in this process; 0 without the embedder."""
    if bench.infold is None:
        return 0.0
    sys.path.append(str(common.HERE.parent))
    try:
        from memory.embed import OnnxEmbedder
    except ImportError:
        return 0.0

    async def measure() -> float:
        embedder, seconds = OnnxEmbedder(), []
        for number in range(12):
            began = time.perf_counter()
            await embedder.embed([f"Which ticket was the parser about, and what did the tests of step {number} print?"])
            seconds.append(time.perf_counter() - began)
        return median(seconds[2:])

    return asyncio.run(measure())


def end_of_answer(bench: Bench, dsn: str | None) -> None:
    """From the first byte of an answer to its last, which Infold relays when the turn is durable."""
    n = 40 if bench.quick else 300
    body = small()
    direct, through = bench.pairs((Ask(body(number)) for number in range(10**9, 2 * 10**9)), n, "key-end")
    row = Row("end of a 1 KB answer", [t.end - t.first for t in direct], [t.end - t.first for t in through])
    bench.rows.append(row)
    if dsn and through:
        insert = asyncio.run(durable_insert(dsn, n))
        bench.rows.append(Row("bare durable insert", insert, note="2 KB row, one connection"))
        bench.facts["end_of_answer_by_insert"] = round(median(row.infold) / median(insert), 2)


async def durable_insert(dsn: str, n: int) -> list[float]:
    """Seconds of inserts that are on disk when they return, in a schema of their own that is dropped again."""
    connection = await asyncpg.connect(dsn)
    seconds = []
    try:
        await connection.execute(
            "create schema infold_benchmark; create table infold_benchmark.rows (id int, raw bytea)"
        )
        await connection.execute("set synchronous_commit = on")
        for number in range(n + 5):
            row = os.urandom(INSERT_BYTES)
            began = time.perf_counter()
            await connection.execute("insert into infold_benchmark.rows values ($1, $2)", number, row)
            seconds.append(time.perf_counter() - began)
    finally:
        await connection.execute("drop schema if exists infold_benchmark cascade")
        await connection.close()
    return seconds[5:]


def database(server: Server) -> str | None:
    """The address of the database the proxy uses: the user's, else the embedded one."""
    if given := os.environ.get("DATABASE_URL"):
        return given
    sys.path.append(str(common.HERE.parent))
    try:
        from memory.postgres import attach
    except ImportError:
        return None
    folder = Path(server.environment["INFOLD_DATA_DIR"])
    places = [folder, *(path for path in folder.glob("*") if path.is_dir())] if folder.is_dir() else []
    found = next((address for place in places if (address := attach(place))), None)
    return found.dsn if found else None


def throughput(bench: Bench) -> None:
    """Requests a second and CPU of each at 1 KB, then CPU of streams."""
    seconds, streams = (2.0, 40) if bench.quick else (8.0, 400)
    bare = bare_server(bench.provider.log.parent, bench.provider.url, bench.infold.core if bench.infold else None)
    bare.start()
    try:
        for name, server in (("direct", bench.provider), ("bare", bare), ("infold", bench.infold)):
            if server is not None:
                load_and_streams(bench, name, server, seconds, streams)
    finally:
        bare.stop()
    bench.facts["slower_than_the_aims_machine"] = round(bench.facts["load_32_bare"]["cpu_ms_bare"] / BARE_MS, 1)


def load_and_streams(bench: Bench, name: str, server: Server, seconds: float, streams: int) -> None:
    members = roles(server, bench.infold)
    before = {role: cpu_seconds(pids) for role, pids in members.items()}
    load = closed_loop(server.url, "key-load", small(), FAST, 32, seconds)
    used = {role: cpu_seconds(pids) - before[role] for role, pids in members.items()}
    done = max(1, len(load.latencies))
    facts: Json = {"per_second": round(load.per_second), "failures": load.failures}
    facts |= {"p50_ms": round(median(load.latencies) * MILLISECOND, 2)}
    facts |= {"p99_ms": round(percentile(load.latencies, 0.99) * MILLISECOND, 2)}
    facts |= {f"cpu_ms_{role}": round(value / done * MILLISECOND, 3) for role, value in used.items()}
    bench.facts[f"load_32_{name}"] = facts
    if load.failures:
        bench.failures.append(f"load, {name}: {load.failures}")
    before = {role: cpu_seconds(pids) for role, pids in members.items()}
    chunked = FAST | {"x-script-chunks": "100"}
    load = closed_loop(server.url, "key-streams", small(stream=True), chunked, 4, limit=streams)
    used = {role: cpu_seconds(pids) - before[role] for role, pids in members.items()}
    facts = {f"cpu_ms_{role}": round(value / streams * MILLISECOND, 3) for role, value in used.items()}
    bench.facts[f"stream_100_chunks_{name}"] = facts | {"streams": len(load.latencies), "failures": load.failures}


def roles(server: Server, infold: Server | None) -> dict[str, Sequence[int]]:
    if server is not infold:
        assert server.process is not None
        return {server.name: [server.process.pid]}
    members = family(server)
    return {"web": members.web, "postgres": members.postgres, "worker": members.worker}


def stall(bench: Bench) -> None:
    """The longest silence of a stream with a chunk every 5 ms while cold histories arrive."""
    cold = 2 if bench.quick else 8
    for name, server in (("direct", bench.provider), ("infold", bench.infold)):
        if server is None:
            continue
        bodies = [join([orjson.dumps(m) for m in history(100 + number, 500)], "ctx-131072") for number in range(cold)]
        url, spent = server.url, list[float]()

        def send(url: str = url, bodies: Sequence[bytes] = bodies, spent: list[float] = spent) -> None:
            connection = Connection(url, "key-cold")
            for body in bodies:
                time.sleep(0.25)
                spent.append(connection.ask(body, FAST).first)

        chunks = 200 * (cold // 2)
        paced = FAST | {"x-script-chunks": str(chunks), "x-script-pace": "5", "x-script-reply": "long"}
        sender = in_background(send)
        timing = Connection(url, "key-paced").ask(small(stream=True)(1), paced)
        sender.join(120)
        facts = {"longest_silence_ms": round(timing.gap * MILLISECOND, 1)}
        bench.facts[f"stall_{name}"] = facts | {
            "cold_first_byte_ms": round(median(spent) * MILLISECOND, 1),
            "cold": cold,
        }


def memory(bench: Bench, when: str) -> None:
    if bench.infold is None:
        return
    for role, pids in roles(bench.infold, bench.infold).items():
        bench.facts[f"memory_mb_{role}_{when}"] = round(sum(memory_mb(pid) for pid in pids), 1)


def million_tokens(bench: Bench) -> None:
    """Seven conversations of 500 KB, about 140,000 tokens each."""
    if bench.infold is None or bench.quick:
        return
    connection = Connection(bench.infold.url, "key-million")
    for number in range(7):
        connection.ask(join([orjson.dumps(m) for m in history(200 + number, 500)], "ctx-131072"), FAST)
    connection.close()


def share_cores(members: Family) -> None:
    """Provider, load and job worker on the second core; web worker and PostgreSQL stay on the first."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[1]})
        for pid in members.worker:
            os.sched_setaffinity(pid, {cores[1]})


async def prepare(bench: Bench) -> None:
    async with connect(bench.provider, bench.infold) as client:
        long = {"role": "assistant", "content": str(REPLY["content"]) * 8}
        loops = {f"call {n}": call(n) for n in range(STEPS_KNOWN)} | {f"done {n}": done(n) for n in range(STEPS_KNOWN)}
        await client.script({"1KB": REPLY, "long": long} | loops)
        if bench.infold and not await client.learn_windows([f"ctx-{window}" for window in WINDOWS]):
            console.print("[yellow]the proxy did not ask for the models' windows in 10 s[/]")


async def settle(bench: Bench) -> None:
    async with connect(bench.provider, bench.infold) as client:
        await client.wait_for_jobs(2 if bench.quick else 120)


def measure(bench: Bench) -> None:
    memory(bench, "idle")
    asyncio.run(prepare(bench))
    dsn = database(bench.infold) if bench.infold else None
    steps: dict[str, Callable[[], Any]] = {
        "latencies": lambda: latencies(bench),
        "end": lambda: end_of_answer(bench, dsn),
        "throughput": lambda: throughput(bench),
        "stall": lambda: stall(bench),
        "memory": lambda: million_tokens(bench),
    }
    chosen = [step for name, step in steps.items() if name in bench.given.steps.split(",")]
    with common.progress() as bar:
        task = bar.add_task("measuring", total=len(chosen))
        for step in chosen:
            step()
            if bench.infold and step is not chosen[-1]:
                asyncio.run(settle(bench))
            bar.advance(task)
    memory(bench, "after")


def table(rows: Sequence[Row]) -> Table:
    drawn = Table()
    for head in (
        "ms to the first byte",
        "N",
        "direct p50",
        "infold p50",
        "added p50",
        "added p99",
        "aim",
        "mode",
        "note",
    ):
        drawn.add_column(head, justify="left" if head in ("ms to the first byte", "mode", "note") else "right")
    for row in rows:
        f = row.facts()
        names = ("direct_p50_ms", "infold_p50_ms", "added_p50_ms", "added_p99_ms")
        cells = [f"{f[name]:.3f}" if name in f else "" for name in names]
        aim = f"{row.aim_ms:.1f}" if row.aim_ms else ""
        drawn.add_row(row.name, f"{f['pairs']:,}", *cells, aim, row.mode, row.note)
    return drawn


def checks(bench: Bench) -> dict[str, bool]:
    """Aims of a quiet machine; `--quick` allows five times as much, and more where asking directly is slow, too."""
    held = {"every request answered": not bench.failures}
    if bench.infold is None:
        return held
    direct = median(bench.rows[0].direct) * MILLISECOND if bench.rows else QUIET_MS
    busy = min(4.0, max(1.0, direct / QUIET_MS))
    slack = 5 * busy if bench.quick else 1
    for row in bench.rows:
        if row.aim_ms and row.infold:
            name = f"{row.name}: added p50 at most {row.aim_ms * slack:.1f} ms"
            held[name] = median(row.added) * MILLISECOND <= row.aim_ms * slack
    facts = bench.facts
    if "end_of_answer_by_insert" in facts:
        inserts = facts["end_of_answer_by_insert"]
        held[f"end of an answer at most {3 * slack:.0f} durable inserts"] = inserts <= 3 * slack
    if "load_32_infold" in facts:
        held[f"at least {600 / slack:.0f} requests/s"] = facts["load_32_infold"]["per_second"] >= 600 / slack
        stream = facts["stream_100_chunks_infold"]["cpu_ms_web"]
        held[f"at most {2 * slack:.0f} ms CPU a stream"] = stream <= 2 * slack
    if "stall_infold" in facts:
        silence = facts["stall_infold"]["longest_silence_ms"] - facts["stall_direct"]["longest_silence_ms"]
        held[f"no stream stalls for more than {50 * slack:.0f} ms"] = silence <= 50 * slack
    held["web worker at most 150 MB idle"] = facts["memory_mb_web_idle"] <= 150
    held["web worker at most 250 MB after"] = facts["memory_mb_web_after"] <= 250
    held["job worker at most 350 MB"] = facts["memory_mb_worker_after"] <= 350
    return held


EXAMPLES = """\
  python benchmarks/overhead.py --quick
  python benchmarks/overhead.py --save
  DATABASE_URL=postgresql://... python benchmarks/overhead.py"""


STEPS = "latencies,end,throughput,stall,memory"


def main() -> int:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    parser.add_argument("--steps", default=STEPS, help=f"which to take, with commas between (default {STEPS})")
    given = parser.parse_args()
    about = common.header("overhead", "what does a request cost on its way?", given)
    with servers(given, WINDOWS, pin=True) as (provider, infold):
        bench = Bench(given, provider, infold)
        share_cores(family(infold) if infold else Family((), (), (), ()))
        measure(bench)
    console.print(table(bench.rows))
    for name, value in bench.facts.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(f"{name:>28}  {text}", highlight=False)
    if given.save:
        common.save(about, {"rows": {row.name: row.facts() for row in bench.rows}, **bench.facts})
    return common.verdict(given, checks(bench))


if __name__ == "__main__":
    sys.exit(main())
