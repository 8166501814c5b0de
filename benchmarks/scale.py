"""What a memory far larger than the model's window costs: time to store, tokens in the prompt, what is found, how soon.

`--windows N` stores N windows of a 128k model as chunks of code and documentation, plants 100 facts in them, and asks
for each in other words: is it found by search, and does it stand in full in the working context of the question?
Everything is real: the embedded PostgreSQL, the built-in embedder, two cores for its bulk work.

`--conversations N` fills the store with N generated conversations of 2 to 6 messages, of tenants from 50 rows up, and
asks each tenant. Their vectors are drawn from a mixture, since the index is what is measured there; how near they are
is known exactly, so recall is, too.

A run that was broken off goes on where it stopped with `--folder` and the same options.
"""

import argparse
import asyncio
import random
import sys
import sysconfig
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import common
import crowd
from common import console, percentile
from data import Json
from facts import Fact, facts
from rich.table import Table
from servers import workspace

from memory.embed import OnnxEmbedder
from memory.identify import key_tenant, place
from memory.items import Items
from memory.models import ModelTable
from memory.nouns import Place
from memory.postgres import start
from memory.settings import Settings
from memory.store.migrate import migrate
from memory.store.pool import Pool
from memory.tokens import Counter
from memory.worker import embed_item

MODELS = {3: ("gpt-4", 8_192), 5: ("gpt-4o", 128_000), 10: ("gpt-4o", 128_000)}  # by the number of windows
CHUNKS = {3: 6, 5: 12, 10: 32}
USED_AIMS = {5: 71_792, 10: 26_122}  # tokens in the prompt
STORED_AIM, EMBEDDED_AIM = 20.0, 240.0  # seconds
SEARCH_AIM, READ_AIM, READ_WORST_AIM = 6.0, 1.0, 5.0  # milliseconds: median, median, p99
READS = 1_000

SOURCES = ("*.py", "*.md", "*.rst", "METADATA", "*.txt")
LEAST_SOURCE, MOST_SOURCE = 2_000, 60_000  # characters of a file that is taken


@dataclass(frozen=True, slots=True)
class Bench:
    """The real parts of a run."""

    items: Items
    pool: Pool
    counter: Counter
    bulk: OnnxEmbedder
    given: argparse.Namespace
    dsn: str

    def count(self, text: str) -> int:
        return self.counter.text(text, "o200k_base")


@asynccontextmanager
async def bench(given: argparse.Namespace, folder: Path) -> AsyncIterator[Bench]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    server = start(folder / "data", shared_buffers_mb=256)
    pool, counter, models = Pool(server.address.dsn, 4), Counter(), ModelTable()
    bulk, quick = OnnxEmbedder(threads=2), OnnxEmbedder()
    try:
        await migrate(server.address.dsn)
        await pool.open()
        items = Items(pool, counter, models, Settings(), embedder=quick)
        yield Bench(items, pool, counter, bulk, given, server.address.dsn)
    finally:
        await bulk.close()
        await quick.close()
        await pool.close()
        server.stop()


# Windows.


def technical(rng: random.Random) -> Iterator[str]:
    """Code and documentation of this Python and its packages, in pieces, in an order drawn with the seed."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    paths = sorted(
        {path for root in roots for kind in SOURCES for path in root.rglob(kind) if "tests" not in path.parts}
    )
    rng.shuffle(paths)
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
        if len(text) >= LEAST_SOURCE:
            yield text[:MOST_SOURCE]


def chunks_of(bench: Bench, windows: int, planted: list[Fact]) -> list[str]:
    """Chunks of equal size, with the facts somewhere between their lines."""
    rng, number = random.Random(bench.given.seed), CHUNKS[windows]
    each = windows * MODELS[windows][1] // number
    sources, chunks = technical(rng), []
    for place_of_chunk in range(number):
        mine = planted[place_of_chunk::number]
        room = each - sum(bench.count(fact.sentence) + 2 for fact in mine)
        chunks.append(plant(rng, text_of(bench, sources, room), mine))
    return chunks


def text_of(bench: Bench, sources: Iterator[str], tokens: int) -> str:
    parts: list[str] = []
    while tokens > 0:
        part = next(sources)
        size = bench.count(part)
        parts.append(part if size <= tokens else part[: len(part) * tokens // size])
        tokens -= size
    return "\n\n".join(parts)


def plant(rng: random.Random, text: str, mine: list[Fact]) -> str:
    lines = text.splitlines()
    for fact, at in zip(mine, sorted(rng.sample(range(len(lines)), len(mine)), reverse=True), strict=True):
        lines.insert(at, fact.sentence)
    return "\n".join(lines)


async def windows(bench: Bench, number: int) -> Json:
    named, unnamed = facts()
    planted = [*named, *unnamed]
    if bench.given.quick:
        named, unnamed = named[:14], unnamed[:6]
        planted = [*named, *unnamed]
    at = place(key_tenant(b"scale", f"windows {number}"), f"seed-{bench.given.seed}")
    model, window = MODELS[number]
    chunks = chunks_of(bench, number, random.Random(bench.given.seed).sample(planted, len(planted)))
    stored, ids = await store(bench, at, model, chunks)
    by_words = await lexical(bench, at, named)
    embedded = await embed(bench, at, ids)
    state = await bench.items.state(at, model)
    result: Json = {
        "windows": number,
        "model": model,
        "aim_tokens": USED_AIMS.get(number, window // 5),
        "chunks": len(chunks),
        "tokens": sum(bench.count(chunk) for chunk in chunks),
        "stored_s": round(stored, 1),
        "found_by_words_before_embedding": by_words,
        "embedded_s": round(embedded, 1),
        "used_tokens": state.used_context_length,
    }
    result["ratio"] = round(result["tokens"] / max(1, result["used_tokens"]), 1)
    for kind, asked in (("named", named), ("unnamed", unnamed)):
        result[kind] = await ask(bench, at, model, asked)
    return result | await speed(bench, at, model, planted, ids)


async def store(bench: Bench, at: Place, model: str, chunks: list[str]) -> tuple[float, list[str]]:
    """Seconds until all chunks are stored and can be found by their words, and their ids."""
    ids = [str(uuid.uuid5(at.id, f"{bench.given.seed} {number}")) for number in range(len(chunks))]
    began = time.perf_counter()
    with common.progress() as bar:
        task = bar.add_task("storing", total=len(chunks))
        for id, chunk in zip(ids, chunks, strict=True):
            await bench.items.add(at, model, chunk, "code", id=uuid.UUID(id))
            bar.advance(task)
    return time.perf_counter() - began, ids


async def embed(bench: Bench, at: Place, ids: list[str]) -> float:
    began = time.perf_counter()
    with common.progress() as bar:
        task = bar.add_task("embedding", total=len(ids))
        for id in ids:
            await embed_item(bench.pool, bench.bulk, at.tenant, id)
            bar.advance(task)
    return time.perf_counter() - began


async def lexical(bench: Bench, at: Place, asked: list[Fact]) -> int:
    found = 0
    for fact in asked:
        hits = await bench.items.search(at, fact.question, 5, by_meaning=False)
        found += any(holds(hit, fact) for hit in hits)
    return found


async def ask(bench: Bench, at: Place, model: str, asked: list[Fact]) -> Json:
    """Of how many facts the item is found, with the passage that has them; and of how many the sentence stands in the
    question's working context."""
    items = found = placed = 0
    missed = []
    with common.progress() as bar:
        task = bar.add_task("asking", total=len(asked))
        for fact in asked:
            hits = await bench.items.search(at, fact.question, 5)
            items += any(fact.sentence in hit.full_content for hit in hits)
            found += any(holds(hit, fact) for hit in hits)
            context = await bench.items.working_context(at, model, query=fact.question)
            stands = any(fact.sentence in entry.content for entry in context.full_items)
            placed += stands
            missed += [] if stands else [fact.question]
            bar.advance(task)
    return {"n": len(asked), "items": items, "found": found, "placed": placed, "missed": missed}


def holds(hit: object, fact: Fact) -> bool:
    """Whether the passage that was found has some of the fact's sentence: a cut may run through it."""
    content, passage = getattr(hit, "full_content", ""), getattr(hit, "passage", None)
    start = content.find(fact.sentence)
    return start >= 0 and passage is not None and passage.start < start + len(fact.sentence) and passage.stop > start


async def speed(bench: Bench, at: Place, model: str, planted: list[Fact], ids: list[str]) -> Json:
    """Milliseconds of searches, each with a question that was not asked before, and of reads by id."""
    searches, reads = [], []
    for fact in planted:
        began = time.perf_counter()
        await bench.items.search(at, f"Tell me, please: {fact.question}", 5)
        searches.append(1_000 * (time.perf_counter() - began))
    small = await bench.items.add(at, model, "A short item that is read again and again.", "note")
    for _ in range(READS):
        began = time.perf_counter()
        await bench.items.retrieve(at.tenant, small.id)
        reads.append(1_000 * (time.perf_counter() - began))
    await bench.items.delete(at.tenant, small.id)
    whole = []
    for id in ids * 3:
        began = time.perf_counter()
        await bench.items.retrieve(at.tenant, id)
        whole.append(1_000 * (time.perf_counter() - began))
    return {
        "searches": len(searches),
        "search_p50_ms": round(percentile(searches, 0.5), 2),
        "search_p99_ms": round(percentile(searches, 0.99), 2),
        "reads": len(reads),
        "read_p50_ms": round(percentile(reads, 0.5), 3),
        "read_p99_ms": round(percentile(reads, 0.99), 3),
        "chunk_read_p50_ms": round(percentile(whole, 0.5), 2),
    }


def table(result: Json) -> Table:
    drawn = Table(title=f"{result['windows']} windows: {result['tokens']:,} tokens in {result['chunks']} chunks")
    drawn.add_column("")
    drawn.add_column("measured", justify="right")
    drawn.add_column("aim", justify="right")
    for what, value, wanted in (
        ("stored, seconds", result["stored_s"], STORED_AIM),
        ("embedded, seconds", result["embedded_s"], EMBEDDED_AIM),
        ("tokens in the prompt", f"{result['used_tokens']:,}", f"{result['aim_tokens']:,}"),
        ("compressed", f"{result['ratio']}:1", ""),
        ("facts, named: found by words, before embedding", result["found_by_words_before_embedding"],
         result["named"]["n"]),
        *(
            (f"facts, {kind}: their item found, by that passage, in the working context",
             f"{result[kind]['items']}, {result[kind]['found']}, {result[kind]['placed']}", f"{result[kind]['n']}")
            for kind in ("named", "unnamed")
        ),
        ("search p50, ms", result["search_p50_ms"], SEARCH_AIM),
        ("by id p50, ms", result["read_p50_ms"], READ_AIM),
        ("by id p99, ms", result["read_p99_ms"], READ_WORST_AIM),
    ):  # fmt: skip
        drawn.add_row(what, str(value), str(wanted))
    return drawn


def checks(result: Json) -> dict[str, bool]:
    """What must hold on any machine; milliseconds are told, not checked."""
    where, aim = f"{result['windows']} windows", result["aim_tokens"]
    n, by_words = result["named"]["n"], result["found_by_words_before_embedding"]
    others = 0.9 if result["windows"] >= 5 else 0.5  # a small window has room for fewer passages
    return {
        f"{where}: at most {aim:,} tokens in the prompt": result["used_tokens"] <= aim,
        f"{where}: 8 of 10 facts asked for by name are found": result["named"]["found"] >= 0.8 * n,
        f"{where}: every fact asked for by name stands in full in the working context": result["named"]["placed"] == n,
        f"{where}: {others:.0%} of the others, too": result["unnamed"]["placed"] >= others * result["unnamed"]["n"],
        f"{where}: words alone find 6 of 10 before anything is embedded": by_words >= 0.6 * n,
    }


EXAMPLES = """\
  python benchmarks/scale.py --quick
  python benchmarks/scale.py --windows 5 --windows 10 --save
  python benchmarks/scale.py --conversations 500000 --folder /var/tmp/scale --save
  python benchmarks/scale.py --windows 10 --folder /var/tmp/scale      # goes on there when it was broken off"""


def parse() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--windows", type=int, action="append", choices=sorted(CHUNKS), help="of a 128k model (default: 5 and 10)"
    )
    parser.add_argument("--conversations", type=int, default=0, help="how many to fill the store with (try 500000)")
    parser.add_argument("--folder", type=Path, help="where the data lies; kept, and gone on with")
    given = parser.parse_args()
    given.windows = [3] if given.quick else given.windows or ([] if given.conversations else [5, 10])
    given.conversations = 2_500 if given.quick else given.conversations
    return given


async def run(given: argparse.Namespace, folder: Path) -> list[Json]:
    results = []
    async with bench(given, folder) as parts:
        for number in given.windows:
            result = await windows(parts, number)
            console.print(table(result))
            for kind in ("named", "unnamed"):
                for question in result[kind]["missed"]:
                    console.print(f"[yellow]missed[/]  {question}", highlight=False)
            results.append(result)
    return results


async def run_crowd(given: argparse.Namespace, folder: Path) -> Json:
    async with bench(given, folder) as parts:
        filled = await crowd.fill(parts.dsn, given.seed, given.conversations, technical(random.Random(given.seed)))
        result = await crowd.measure(parts.pool, given.seed, given.conversations) | {"filled_s": round(filled, 1)}
    console.print(crowd.table(result))
    fit, sharp = result["fit_in_125k"], result["needles"]
    console.print(f"needles {sharp['found']} of {sharp['n']}; in 125,000 tokens: {fit}; filled in {filled:.0f} s")
    return result


def main() -> int:
    given = parse()
    about = common.header("scale", "what does a memory of many windows cost, and what does it find?", given)
    with ExitStack() as stack:
        folder = given.folder or stack.enter_context(workspace(given.keep))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        results = asyncio.run(run(given, folder / "windows")) if given.windows else []
        many = asyncio.run(run_crowd(given, folder / "crowd")) if given.conversations else None
    if given.save:
        common.save(
            about | {"options": {**about["options"], "folder": str(given.folder or "")}},
            {"windows": results, "crowd": many},
        )
    held = {what: held for result in results for what, held in checks(result).items()}
    return common.verdict(given, held | (crowd.checks(many) if many else {}))


if __name__ == "__main__":
    sys.exit(main())
