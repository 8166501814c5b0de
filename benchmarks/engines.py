"""How soon a local model is there, how fast it reads and writes, what it takes, how soon it lets go of who has left.

SmolLM2-135M, whose weights are fetched where they are missing; `--home` names a folder that has them, as
`<data directory>/models` does. Doing nothing is a loop in another niced process: it tells how much of a core was free.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import common
import httpx
from common import console, median
from data import Json
from processes import cpu_seconds, memory_mb
from rich.table import Table
from servers import infold_server, workspace

from memory.slm.engine import READS, Engine, Running, start
from memory.slm.registry import SMOLLM2
from memory.slm.speed import speed
from memory.slm.weights import Weights, fetch, locate

WRITES_AIM, MEGABYTES_AIM, REPLY_AIM = 30.0, 500.0, 15.0
LONG = "word " * 3_000
ENDLESS = "Tell me a story that never ends."
IDLE_SECONDS = 0.5  # without work: it has stopped
LOOP = (
    "import os, time\nos.nice(10)\nn, end = 0, time.perf_counter() + 2\n"
    "while time.perf_counter() < end: n += 1\nprint(time.process_time() / 2)"
)

EXAMPLES = """\
  python benchmarks/engines.py --quick
  python benchmarks/engines.py --backend transformers --quantization 8bit
  python benchmarks/engines.py --save"""


def free_share() -> float:
    """Of a core, for a niced process."""
    return float(subprocess.run([sys.executable, "-c", LOOP], capture_output=True, check=True).stdout)


def engine_facts(given: argparse.Namespace, weights: Weights, home: Path, threads: int) -> Json:
    began = time.perf_counter()
    how = Running(given.backend, weights, home, threads=threads, quantization=given.quantization)
    engine = start(how)
    try:
        assert engine.ready is not None
        ready = time.perf_counter() - began
        pace = speed(engine.ready.url, engine.name)
        facts: Json = {"threads": threads, "free_share": round(free_share(), 2), "ready_s": round(ready, 2)}
        facts |= {"reads_tokens_s": round(pace.reads), "writes_tokens_s": round(pace.writes, 1)}
        if not given.quick:
            facts["lets_go_s"] = {name: lets_go(engine, text) for name, text in (("answer", ENDLESS), ("prompt", LONG))}
        return facts | {"rss_mb": round(memory_mb(engine.pid))}
    finally:
        engine.stop()


def lets_go(engine: Engine, text: str) -> float:
    """Seconds from a client's leaving to the last work for it."""
    assert engine.ready is not None
    body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 8_000, "ignore_eos": True})
    url = httpx.URL(engine.ready.url)
    before = cpu_seconds([engine.pid])
    with socket.create_connection((url.host, url.port)) as leaving:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        leaving.sendall(f"{head}{body}".encode())
        while cpu_seconds([engine.pid]) < before + 0.5:
            time.sleep(0.01)
    left = worked = time.perf_counter()
    spent = cpu_seconds([engine.pid])
    while time.perf_counter() - worked < IDLE_SECONDS:
        time.sleep(0.02)
        if (now := cpu_seconds([engine.pid])) > spent:
            spent, worked = now, time.perf_counter()
    return round(worked - left, 2)


def first_reply(given: argparse.Namespace, weights: Weights) -> Json:
    """Seconds from the command `infold serve --upstream local` to the first answer, in a new data directory."""
    with workspace(given.keep) as folder:
        infold = infold_server(folder, "http://127.0.0.1:9", given.serve)
        infold.command = ["local" if word == "http://127.0.0.1:9/v1" else word for word in infold.command]
        infold.environment |= {"INFOLD_SLM__MODEL": str(weights.path), "INFOLD_SLM__BACKEND": given.backend}
        began = time.perf_counter()
        try:
            ready = infold.start()
            body = {"model": "any", "messages": [{"role": "user", "content": "Where is it?"}], "max_tokens": 24}
            httpx.post(f"{infold.url}/v1/chat/completions", json=body, timeout=600).raise_for_status()
            return {"ready_s": round(ready, 2), "first_reply_s": round(time.perf_counter() - began, 2)}
        finally:
            infold.stop()


def show(rows: list[Json]) -> None:
    table = Table()
    for head in ("threads", "core free", "ready s", "reads tokens/s", "writes tokens/s", "lets go s", "RSS MB"):
        table.add_column(head, justify="right")
    for row in rows:
        lets = ", ".join(f"{seconds:.1f} ({what})" for what, seconds in row.get("lets_go_s", {}).items())
        table.add_row(
            str(row["threads"]), f"{row['free_share']:.0%}", f"{row['ready_s']:.1f}", str(row["reads_tokens_s"]),
            f"{row['writes_tokens_s']:.0f}", lets, str(row["rss_mb"]),
        )  # fmt: skip
    console.print(table)


def main() -> int:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    parser.add_argument("--backend", choices=list(READS), default="llamacpp")
    parser.add_argument("--quantization", choices=["none", "8bit", "4bit"], default="none")
    parser.add_argument("--home", type=Path, help="a folder with the weights (default: fetched and thrown away)")
    parser.add_argument("--repeats", type=int, default=3, help="starts of the whole server (default 3)")
    given = parser.parse_args()
    given.repeats, folder = 1 if given.quick else given.repeats, given.home
    del given.home  # no matter to the result
    about = common.header("engines", "a local model", given, N=given.repeats)
    with contextlib.ExitStack() as stack:
        home = folder or stack.enter_context(workspace())
        weights = locate(SMOLLM2.name, home) if folder else fetch(SMOLLM2, home, console.print)
        rows = [engine_facts(given, weights, home, threads) for threads in range(1, 1 + min(2, os.cpu_count() or 1))]
        served = [] if given.direct else [first_reply(given, weights) for _ in range(given.repeats)]
    show(rows)
    replies = [row["first_reply_s"] for row in served]
    if replies:
        console.print(f"first reply {median(replies):.1f} s after `infold serve --upstream local`, N {len(replies)}")
    if given.save:
        common.save(about, {"engine": rows, "served": served})
    aims = {
        f"an answer of {WRITES_AIM:.0f} tokens/s": max(row["writes_tokens_s"] for row in rows) >= WRITES_AIM,
        f"at most {MEGABYTES_AIM:.0f} MB": max(row["rss_mb"] for row in rows) <= MEGABYTES_AIM,
        f"the first reply within {REPLY_AIM:.0f} s": not replies or median(replies) <= REPLY_AIM,
    }
    return common.verdict(given, aims if given.backend == "llamacpp" else {})


if __name__ == "__main__":
    sys.exit(main())
