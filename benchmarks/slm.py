"""Does a small model that reads what was found answer questions about a conversation, and does it invent anything?

Each conversation is said once through the proxy, under its session's name. Then its questions go to
`POST /memory-manager/ask`, once with a small model and once without, and to the model itself.

  nothing            no memory, no model: no answer
  closed book        the model alone
  newest, sentences  the best sentences of the newest messages, as many as are read otherwise: without retrieval
  newest, model      the model reads these as `ask` has it read; what does not hold is replaced by their sentences
  found, sentences   `ask` without a model
  found, unchecked   the first thing that the model says to what `ask` finds, believed
  found, model       `ask` with the model

F1: token-F1 to the gold answer after SQuAD's normalisation, mean over the questions (Rajpurkar et al. 2016,
arXiv:1606.05250, evaluate-v1.1.py). Words: share of the gold answer's words in the answer. Evidence: share of the gold
evidence messages among the messages that the answer cites. Invented: answers with a number or a name that stands in no
message that was read (for `found, model`: that is cited), by a check of this file that knows nothing of the proxy's.
"""

import argparse
import asyncio
import random
import re
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import aiohttp
import common
import data
import orjson
from aiohttp import web
from client import Client, chat_body, connect
from common import console
from data import Case, Conversation, Json
from rich.progress import Progress
from rich.table import Table
from servers import free_port, servers

from memory.ask import ANSWER_TOKENS, SENTENCES, answer_in, judged, reads_together
from memory.extract import extract, told
from memory.prompts import read_text, reading
from memory.rank import query
from memory.slm.client import ModelAt, read
from memory.slm.registry import SMOLLM2
from memory.slm.weights import fetch

SETS, QUICK_SETS = ("locomo",), ("qmsum",)
WINDOW = 131_072
TRAPS = "adversarial"  # questions whose gold answer is wrong on purpose
ENGINE = """
import sys, time, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.ui = sys.argv[1], 8192, 1, False
settings.hostnames, settings.port, settings.cpuparams.n_threads = ["127.0.0.1"], int(sys.argv[2]), int(sys.argv[3])
server = xllamacpp.Server(settings)
print("ready", flush=True)
sys.stdin.read()
"""

ARTICLES = re.compile(r"\b(a|an|the)\b")
TOKEN = re.compile(r"[^\W_]+")
ORDINAL = re.compile(r"(?<=\d)(?:st|nd|rd|th)$")
SPELLED = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen eighteen nineteen twenty".split()
    )
}
MONTHS = "january february march april may june july august september october november december".split()
CLOSED = frozenset(  # words that are no names, though a sentence begin with them
    "a about above according across after again against all almost along already also although always am among an and"
    " another any anyone anything are around as at away back be became because been before behind being below between"
    " both but by came can cannot could d did do does doing done down during each either else ever every everyone"
    " everything few first for from further gave get gets getting goes going got had has have having he her here hers"
    " herself him himself his how however i if in instead into is it its itself just last later least less ll m made"
    " make makes many may maybe me might mine more most much must my myself near neither never next no nobody none nor"
    " not nothing now of off often on once only onto or other others our ours ourselves out over own perhaps rather re"
    " s same several shall she should since so some someone something soon still such t than that the their theirs them"
    " themselves then there therefore these they this those though through thus to too toward towards under until up"
    " upon us ve very was we well were what whatever when where whether which while who whom whose why will with within"
    " without would yes yet you your yours yourself".split()
)


def normalised(text: str) -> list[str]:
    """SQuAD's normal form: lower case, without punctuation and articles."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def token_f1(answer: str, gold: str) -> float:
    said, wanted = normalised(answer), normalised(gold)
    same = sum((Counter(said) & Counter(wanted)).values())
    if not same:
        return float(said == wanted)
    precision, recall = same / len(said), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def words_told(answer: str, gold: str) -> float:
    wanted = normalised(gold)
    return sum((Counter(normalised(answer)) & Counter(wanted)).values()) / max(1, len(wanted))


def invented(answer: str, read: Sequence[str]) -> list[str]:
    """Numbers and capitalised words of an answer that stand in nothing that was read."""
    known = {plain(token) for text in read for token in TOKEN.findall(text)}
    found = []
    for token in TOKEN.findall(answer):
        word = plain(token)
        is_number = any(map(str.isdigit, word))
        is_name = token[:1].isupper() and token.lower() not in CLOSED
        is_month = token.lower() in MONTHS and str(MONTHS.index(token.lower()) + 1) in known
        if (is_number or is_name) and word not in known and not is_month:
            found.append(token)
    return found


def plain(token: str) -> str:
    lowered = ORDINAL.sub("", token.lower())
    return SPELLED.get(lowered) or (lowered.lstrip("0") or "0" if lowered.isdigit() else lowered)


class Said(NamedTuple):
    """An answer, what it cites, and what whoever gave it had read."""

    answer: str
    cited: Sequence[str]
    read: Sequence[str]
    by: str  # "model", "passages", "nothing"
    seconds: float


@dataclass(slots=True)
class Score:
    questions: int = 0
    f1: float = 0.0  # sums until `mean`
    words: float = 0.0
    evidence: float = 0.0
    cited: float = 0.0  # messages
    length: float = 0.0  # words of an answer
    by_model: int = 0
    invented: int = 0  # answers
    seconds: list[float] = field(default_factory=list)

    def add(self, case: Case, said: Said) -> None:
        self.questions += 1
        self.f1 += token_f1(said.answer, case.answer)
        self.words += words_told(said.answer, case.answer)
        hit = [any(cites(text, gold.sent) for text in said.cited) for gold in case.gold]
        self.evidence += sum(hit) / len(hit)
        self.cited += len(said.cited)
        self.length += len(said.answer.split())
        self.by_model += said.by == "model"
        self.invented += bool(invented(said.answer, said.read))
        self.seconds.append(said.seconds)

    def mean(self) -> Json:
        n = max(1, self.questions)
        means = {name: round(getattr(self, name) / n, 4) for name in ("f1", "words", "evidence", "cited", "length")}
        return asdict(self) | means | {"seconds": round(common.median(self.seconds), 3)}


def cites(text: str, sent: str) -> bool:
    """Whether a source's text is a message, or the part of it that was read."""
    found, whole = " ".join(text.split()), " ".join(sent.split())
    return found == whole or (len(found) > 40 and found in whole)


@contextmanager
def engine(given: argparse.Namespace) -> Iterator[str]:
    """The URL of an engine: a given one, else SmolLM2 in llama.cpp, in a process of its own."""
    if given.url:
        yield given.url
        return
    weights = given.weights or fetch(SMOLLM2, Path(given.models).expanduser(), console.print).path
    port = free_port()
    command = [sys.executable, "-c", ENGINE, str(weights), str(port), str(given.threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit("the engine does not start; `pip install 'infold[slm-cpu]'` brings it")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)


class Overheard(NamedTuple):
    """What the model was given to read, and what it said, before anybody checked it."""

    passages: list[str]
    answer: str


@asynccontextmanager
async def overheard(url: str, model: str) -> AsyncIterator[tuple[str, list[Overheard]]]:
    """An address before the engine's, and what passes there."""
    heard: list[Overheard] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def relay(request: web.Request) -> web.Response:
            body = await request.read()
            async with session.request(request.method, f"{url}/{request.match_info['path']}", data=body) as reply:
                answer = await reply.read()
            if request.method == "POST" and reply.status == 200:
                asked = orjson.loads(body)["messages"][-1]["content"].partition("\n\nQuestion: ")[0]
                passages = [line.removeprefix("- ") for line in asked.split("\n")]
                heard.append(Overheard(passages, answer_in(read(answer, model))))
            return web.Response(body=answer, status=reply.status, content_type="application/json")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", relay)
        runner, port = web.AppRunner(app), free_port()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield f"http://127.0.0.1:{port}", heard
        finally:
            await runner.cleanup()


class Reader:
    """The model, asked as the proxy asks it."""

    def __init__(self, url: str, model: str) -> None:
        self._model = ModelAt(url, model, seconds=300)
        self._together = reads_together(model)

    async def answers(self, question: str, passages: Sequence[str]) -> tuple[str, list[str]]:
        """The first answer that holds, and the passages that it rests on; "" for none."""
        for few in [passages] if self._together else [[passage] for passage in passages]:
            kept = judged(await self.says(question, few), question, few)
            if kept.answer:
                return kept.answer, [few[place] for place in kept.rests_on]
        return "", []

    async def says(self, question: str, passages: Sequence[str]) -> str:
        messages = reading(question, passages)
        if not passages:  # the same words without any passage
            messages[-1] = {"role": "user", "content": read_text(question, "").lstrip()}
        said = await self._model.complete(messages, ANSWER_TOKENS, stop=("\n",))
        return answer_in(said)


def sentences_of(question: str, passages: Sequence[str]) -> tuple[str, list[str]]:
    """What the proxy would tell of passages, and of which."""
    chosen = extract(passages, [1.0] * len(passages), query(question).weights, SENTENCES)
    return told(chosen), [passages[place] for place in dict.fromkeys(one.passage for one in chosen)]


async def ask(client: Client, case: Case, session: str, limit: int) -> Json:
    body = orjson.dumps({"question": case.question, "limit": limit})
    headers = {"authorization": "Bearer sk-bench", "x-session-id": session, "content-type": "application/json"}
    async with client.session.post(f"{client.base}/memory-manager/ask", data=body, headers=headers) as reply:
        reply.raise_for_status()
        answer: Json = orjson.loads(await reply.read())
        return answer


def answered(reply: Json, seconds: float) -> Said:
    cited = [source["text"] for source in reply["sources"]]
    by = reply["by"] if reply["sources"] else "nothing"
    return Said(reply["answer"] or "", cited, cited, by, seconds)


async def say(client: Client, conversation: Conversation) -> None:
    """All of a conversation in one request, below the trigger of a large window."""
    last = {"role": "user", "content": "Thank you, that is all for the moment."}
    body = chat_body(f"ctx-{WINDOW}", [*conversation.messages, last], max_tokens=64)
    reply = await client.ask(body, "sk-bench", **{"x-session-id": conversation.name})
    if reply.status != 200:
        raise SystemExit(f"{conversation.name} was not taken: {reply.status} {reply.body[:200]!r}")


def newest(conversation: Conversation, most: int) -> list[str]:
    return [str(message["content"]) for message in conversation.messages if message.get("content")][-most:][::-1]


async def measure(given: argparse.Namespace, chosen: Sequence[Conversation]) -> dict[str, Score]:
    scores = {way: Score() for way in ("nothing", "closed book", "newest, sentences", "newest, model")}
    cases = [(conversation, case) for conversation in chosen for case in conversation.cases]
    for conversation, case in cases:
        began = time.perf_counter()
        answer, cited = sentences_of(case.question or "", newest(conversation, given.passages))
        scores["nothing"].add(case, Said("", (), (), "nothing", 0.0))
        scores["newest, sentences"].add(case, Said(answer, cited, cited, "passages", time.perf_counter() - began))
    if given.direct:
        return scores
    with engine(given) as url, common.progress() as bar:
        reader = Reader(url, given.model)
        task = bar.add_task("without retrieval", total=len(cases))
        for conversation, case in cases:
            await without_retrieval(given, reader, scores, conversation, case)
            bar.advance(task)
        async with overheard(url, given.model) as (address, heard):
            reads = {"BACKEND": "openai", "URL": address, "MODEL": given.model}
            for way, settings in (("found, sentences", {"BACKEND": "none"}), ("found, model", reads)):
                environment = {f"INFOLD_SLM__{name}": value for name, value in settings.items()}
                with servers(given, (WINDOW,), settings=environment) as (provider, infold):
                    async with connect(provider, infold) as client:
                        await client.learn_windows([f"ctx-{WINDOW}"])
                        for conversation in chosen:
                            await say(client, conversation)
                        scores |= await with_retrieval(given, client, way, cases, heard, bar)
    return scores


async def without_retrieval(
    given: argparse.Namespace, reader: Reader, scores: dict[str, Score], conversation: Conversation, case: Case
) -> None:
    question, passages = case.question or "", newest(conversation, given.passages)
    began = time.perf_counter()
    alone = await reader.says(question, ())
    scores["closed book"].add(case, Said(alone, (), (), "model", time.perf_counter() - began))
    began = time.perf_counter()
    answer, cited = await reader.answers(question, passages)
    by, seconds = "model" if answer else "passages", time.perf_counter() - began
    if not answer:
        answer, cited = sentences_of(question, passages)
    scores["newest, model"].add(case, Said(answer, cited, cited, by, seconds))


async def with_retrieval(
    given: argparse.Namespace,
    client: Client,
    way: str,
    cases: Sequence[tuple[Conversation, Case]],
    heard: list[Overheard],
    bar: Progress,
) -> dict[str, Score]:
    """Ask the proxy; what the model said to it, believed, is a way of its own."""
    scores, task = {way: Score(), "found, unchecked": Score()}, bar.add_task(way, total=len(cases))
    for conversation, case in cases:
        heard.clear()
        began = time.perf_counter()
        reply = await ask(client, case, conversation.name, given.passages)
        said = answered(reply, time.perf_counter() - began)
        scores[way].add(case, said)
        if given.show:
            console.print(f"[dim]{case.question} | {case.answer}[/]\n  {said.by}: {said.answer}", highlight=False)
        if way == "found, model":
            passages, answer = heard[0] if heard else ([], "")
            scores["found, unchecked"].add(case, Said(answer, passages, passages, "model", said.seconds))
        bar.advance(task)
    return {name: score for name, score in scores.items() if score.questions}


ORDER = (
    "nothing", "closed book", "newest, sentences", "newest, model", "found, sentences", "found, unchecked",
    "found, model",
)  # fmt: skip


def table(name: str, ways: Json) -> Table:
    drawn = Table(title=name, title_justify="left")
    heads = ("way", "N", "F1", "words", "evidence", "cited", "length", "by the model", "invented", "s a question")
    for head in heads:
        drawn.add_column(head, justify="left" if head == "way" else "right")
    for way in ORDER:
        if s := ways.get(way):
            drawn.add_row(
                way, f"{s['questions']:,}", f"{s['f1']:.3f}", f"{s['words']:.3f}", f"{s['evidence']:.3f}",
                f"{s['cited']:.1f}", f"{s['length']:.1f}", f"{s['by_model']:,}", f"{s['invented']:,}",
                f"{s['seconds']:.2f}",
            )  # fmt: skip
    return drawn


def checks(ways: Json) -> dict[str, bool]:
    if "found, model" not in ways:
        return {"nothing cites nothing": ways["nothing"]["evidence"] == 0}
    model, sentences = ways["found, model"], ways["found, sentences"]
    return {
        "every question was answered": all(s["questions"] == model["questions"] for s in ways.values()),
        "nothing is invented after the check": model["invented"] == sentences["invented"] == 0,
        "retrieval cites more evidence than the newest messages": model["evidence"] > ways["newest, model"]["evidence"],
        "the sentences of what was found cite evidence": sentences["evidence"] > 0,
    }


def main() -> int:
    parser = common.arguments(__doc__ or "", "  python benchmarks/slm.py --quick\n  python benchmarks/slm.py --save")
    parser.add_argument("--limit", type=int, default=100, help="questions (default 100; quick: 4)")
    parser.add_argument("--passages", type=int, default=3, help="passages that are read (default 3)")
    parser.add_argument(
        "--url", default="", help="an engine that runs already, up to /v1; left out: SmolLM2 is started"
    )
    parser.add_argument("--model", default=SMOLLM2.name, help=f"as the engine names it (default {SMOLLM2.name})")
    parser.add_argument("--weights", default="", help="a .gguf file of SmolLM2; left out: it is fetched")
    parser.add_argument("--models", default="~/.cache/infold-bench/models", help="where it is fetched to")
    parser.add_argument("--threads", type=int, default=1, help="of the engine (default 1)")
    parser.add_argument("--show", action="store_true", help="print each question with its answers")
    given = parser.parse_args()
    if given.quick:
        given.limit = min(given.limit, 4)
    about = common.header("slm", "does a reader answer, and does it invent?", given)
    results: Json = {}
    failed = 0
    for name in data.sets(QUICK_SETS if given.quick else SETS):
        rng = random.Random(given.seed)
        conversations = [without_traps(c) for c in data.load(name)]
        chosen = data.sample_cases(conversations, given.limit, rng)
        asked = sum(len(c.cases) for c in chosen)
        console.print(f"[dim]{name:>9}[/]  {len(chosen)} conversations, N = {asked} questions", highlight=False)
        scores = asyncio.run(measure(given, chosen))
        results[name] = {way: score.mean() for way, score in scores.items()}
        console.print(table(name, results[name]))
        failed |= common.verdict(given, checks(results[name]))
    if given.save:
        common.save(about, {"sets": results})
    return failed


def without_traps(conversation: Conversation) -> Conversation:
    cases = tuple(case for case in conversation.cases if case.category != TRAPS and case.answer)
    return replace(conversation, cases=cases)


if __name__ == "__main__":
    sys.exit(main())
