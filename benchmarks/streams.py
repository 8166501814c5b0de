"""What Infold adds to streams: until the first byte, to each chunk on its way, and when there are many at once.

The provider writes into each chunk when it sent it, on the clock that all processes of a machine share; the client
compares when it comes. Rounds go directly, through the least that a proxy in Python can be (`bare.py`), and through
Infold in turn, in one run. The figures to look at are the differences to asking directly: its own milliseconds are the
provider's, the client's and the machine's. Web worker and PostgreSQL share one core, provider and client the other.

  first byte   of a streamed answer of 10 chunks, one request at a time, pair by pair
  transit      of a chunk, with 16 streams of 100 chunks, one every 20 ms each
  CPU          of the web worker for a stream of 100 chunks, come so one by one, and in one burst
  stall        the longest that one chunk took, with 200 streams of a chunk every 100 ms each
"""

import asyncio
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import common
import httptools
import uvloop
from common import console, median, percentile
from data import Json
from overhead import FAST, MILLISECOND, QUIET_MS, WINDOWS, Ask, Bench, prepare, roles, settle, share_cores, small
from processes import cpu_seconds
from rich.table import Table
from servers import Family, Server, bare_server, family, servers
from wire import Connection, closed_loop

STAMP = re.compile(rb'"content":"(\d{20})"')
CHUNKS = 100
AIMS_MS = {
    "first byte, added p50": 1.0,
    "transit, added p50": 0.5,
    "transit, added p99": 3.0,
    "CPU of a burst": 1.5,
    "longest stall, added": 50.0,
}
PACED_MS, PACED_STREAMS = 20, 16
MANY_MS, MANY_STREAMS = 100, 200


class Listener(asyncio.Protocol):
    """One stream: how long each of its chunks was on its way."""

    def __init__(self, request: bytes, ended: "asyncio.Future[None]") -> None:
        self.transits: list[float] = []  # seconds, in the order of the chunks
        self.complete = False
        self._request, self._ended = request, ended
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic_ns()
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if found := STAMP.search(event):
                self.transits.append((self._now - int(found[1])) / 1e9)

    def on_message_complete(self) -> None:
        self.complete = self._parser.get_status_code() == 200
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def listen(url: str, key: str, streams: int, pace_ms: int, chunks: int) -> list[Listener]:
    """Open so many streams, spread over one pace, and follow them to their end."""
    connection = Connection(url, key)
    headers = FAST | {"x-script-chunks": str(chunks), "x-script-pace": str(pace_ms), "x-script-stamp": "1"}

    async def run() -> list[Listener]:
        loop = asyncio.get_running_loop()
        listeners, ended = [], []
        for number in range(streams):
            body = small(stream=True)(time.monotonic_ns() % 10**9)
            future: asyncio.Future[None] = loop.create_future()
            listener = Listener(connection.head(len(body), headers) + body, future)
            await loop.create_connection(partial(lambda made: made, listener), *connection.address)
            listeners.append(listener)
            ended.append(future)
            if number < streams - 1:
                await asyncio.sleep(pace_ms / 1000 / streams)
        async with asyncio.timeout(60 + chunks * pace_ms / 1000):
            await asyncio.gather(*ended)
        return listeners

    return uvloop.run(run())


@dataclass(slots=True)
class Round:
    """What one way showed, round by round."""

    transits: list[float] = field(default_factory=list)
    longest: list[float] = field(default_factory=list)  # of each round
    cpu_seconds: float = 0.0


def rounds(
    bench: Bench, ways: Mapping[str, Server], streams: int, pace_ms: int, chunks: int, n: int
) -> dict[str, Round]:
    found = {name: Round() for name in ways}
    for number in range(n):
        for name in ways if number % 2 else reversed(ways):
            pids = web(bench, ways[name])
            before = cpu_seconds(pids)
            listeners = listen(ways[name].url, f"key-{streams}", streams, pace_ms, chunks)
            found[name].cpu_seconds += cpu_seconds(pids) - before
            if lost := sum(not one.complete or len(one.transits) != chunks for one in listeners):
                bench.failures.append(f"{name}: {lost} streams incomplete")
            transits = [seconds for one in listeners for seconds in one.transits]
            found[name].transits += transits
            found[name].longest.append(max(transits, default=0.0))
    return found


def web(bench: Bench, server: Server) -> Sequence[int]:
    found = roles(server, bench.infold)
    return found["web"] if "web" in found else found[server.name]


def measure(bench: Bench, ways: Mapping[str, Server]) -> Json:
    asyncio.run(prepare(bench))
    facts: Json = {}
    steps = (first_bytes, transit, bursts, stalls)
    with common.progress() as bar:
        task = bar.add_task("measuring", total=len(steps))
        for step in steps:
            facts |= step(bench, ways)
            if bench.infold:
                asyncio.run(settle(bench))
            bar.advance(task)
    return facts


def first_bytes(bench: Bench, ways: Mapping[str, Server]) -> Json:
    n, body = 60 if bench.quick else 1_000, small(stream=True)
    direct, through = bench.pairs((Ask(body(number), chunks=10) for number in range(10**9)), n, "key-first")
    added = [theirs.first - ours.first for ours, theirs in zip(direct, through, strict=False)]
    row = {"N": n, "direct": ms(median([one.first for one in direct]))}
    if added:
        row |= {"infold": ms(median([one.first for one in through])), "added": ms(median(added))}
    return {"first byte, added p50": row}


def transit(bench: Bench, ways: Mapping[str, Server]) -> Json:
    n = 2 if bench.quick else 10
    found = rounds(bench, ways, PACED_STREAMS, PACED_MS, CHUNKS, n)
    rows: Json = {}
    for p in (50, 99):
        row: Json = {"N": len(found["direct"].transits)}
        row |= {name: ms(percentile(one.transits, p / 100)) for name, one in found.items()}
        rows[f"transit, added p{p}"] = with_added(row)
    streams = n * PACED_STREAMS
    cpu = {name: round(one.cpu_seconds / streams * MILLISECOND, 2) for name, one in found.items() if name != "direct"}
    return rows | {"CPU, chunk by chunk": {"N": streams, **cpu}}


def bursts(bench: Bench, ways: Mapping[str, Server]) -> Json:
    n, row = 40 if bench.quick else 400, dict[str, float]()
    for name, server in ways.items():
        pids = web(bench, server)
        before = cpu_seconds(pids)
        chunked = FAST | {"x-script-chunks": str(CHUNKS)}
        load = closed_loop(server.url, "key-bursts", small(stream=True), chunked, 4, limit=n)
        if load.failures:
            bench.failures.append(f"bursts, {name}: {load.failures}")
        row[name] = round((cpu_seconds(pids) - before) / n * MILLISECOND, 2)
    return {"CPU of a burst": {"N": n, **{name: value for name, value in row.items() if name != "direct"}}}


def stalls(bench: Bench, ways: Mapping[str, Server]) -> Json:
    found = rounds(bench, ways, MANY_STREAMS, MANY_MS, 20 if bench.quick else CHUNKS, 1 if bench.quick else 3)
    row: Json = {"N": len(found["direct"].transits)}
    row |= {name: ms(median(one.longest)) for name, one in found.items()}
    return {"longest stall, added": with_added(row)}


def with_added(row: Json) -> Json:
    return row | {"added": round(row["infold"] - row["direct"], 3)} if "infold" in row else row


def ms(seconds: float) -> float:
    return round(seconds * MILLISECOND, 3)


def table(facts: Json) -> Table:
    drawn = Table()
    columns = ("N", "direct", "bare", "infold", "added")
    drawn.add_column("milliseconds")
    for head in (*columns, "aim"):
        drawn.add_column(head, justify="right")
    for name, row in facts.items():
        cells = [f"{row[head]:,}" if head in row else "" for head in columns]
        drawn.add_row(name, *cells, f"{AIMS_MS[name]:g}" if name in AIMS_MS else "")
    return drawn


def checks(bench: Bench, facts: Json) -> dict[str, bool]:
    """Aims of a quiet machine; `--quick` allows five times as much, and more where asking directly or through
    `bare.py` is slow, too."""
    held = {"every stream complete, every chunk stamped": not bench.failures}
    if bench.infold is None:
        return held
    busy = min(4.0, max(1.0, facts["first byte, added p50"]["direct"] / QUIET_MS))
    slack = 5 * busy if bench.quick else 1
    for name, aim in AIMS_MS.items():
        row = facts[name]
        most = aim * slack
        if bench.quick and "direct" in row and "bare" in row:
            most = max(most, 3 * (row["bare"] - row["direct"]))
        held[f"{name} at most {most:.1f} ms"] = row.get("added", row["infold"]) <= most
    return held


EXAMPLES = """\
  python benchmarks/streams.py --quick
  python benchmarks/streams.py --save"""


def main() -> int:
    given = common.arguments(__doc__ or "", EXAMPLES).parse_args()
    about = common.header("streams", "what does a stream cost on its way?", given)
    with servers(given, WINDOWS, pin=True) as (provider, infold):
        bench = Bench(given, provider, infold)
        share_cores(family(infold) if infold else Family((), (), (), ()))
        bare = bare_server(provider.log.parent, provider.url, infold.core if infold else None)
        bare.start()
        try:
            ways = {"direct": provider, "bare": bare} | ({"infold": infold} if infold else {})
            facts = measure(bench, ways)
        finally:
            bare.stop()
    console.print(table(facts))
    for failure in bench.failures:
        console.print(failure)
    if given.save:
        common.save(about, facts)
    return common.verdict(given, checks(bench, facts))


if __name__ == "__main__":
    sys.exit(main())
