"""Does a conversation with a local model, many of its windows long, ever overflow it?

SmolLM2-135M behind `infold serve --upstream local`, asked by the openai SDK, streaming and not by turns. A user reads a
real meeting to it, some thousand tokens a message, and the model answers each; the client sends its whole history, as
clients do. Counted is what the engine says of itself: tokens of each prompt as it came there, and of each reply. Doing
nothing is the same conversation straight to the engine, up to the first prompt that it refuses.
"""

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import data
from common import console, percentile
from data import Json
from openai import BadRequestError, OpenAI
from rich.table import Table
from servers import Server, infold_server, workspace

from memory.ask import ENCODING
from memory.slm.engine import Running, start
from memory.slm.registry import SMOLLM2
from memory.slm.weights import Weights, fetch, locate
from memory.tokens import Counter

SET = "qmsum"
TOKENS, QUICK_TOKENS, LEAST_TOKENS = 20_000, 9_000, 900  # of the conversation, of a message
TIMEOUT_SECONDS = 900

EXAMPLES = """\
  python benchmarks/window.py --quick
  python benchmarks/window.py --threads 2 --save"""


def told(meeting: data.Conversation) -> Iterator[str]:
    """What is said in a meeting, in pieces of at least so many tokens."""
    counter, piece = Counter(), ""
    for message in meeting.messages:
        piece += f"{message.get('name') or 'Somebody'}: {message['content']}\n"
        if counter.text(piece, ENCODING) >= LEAST_TOKENS:
            yield f"This was said:\n{piece}\nWhat is it about? One sentence."
            piece = ""


def asked(client: OpenAI, messages: list[Any], is_stream: bool, most: int) -> tuple[str, Json, Json]:
    """The reply, its usage, the headers of ours.

    Raises:
        BadRequestError: the prompt was refused.
    """
    how: Json = {"model": "gpt-4o", "messages": messages, "max_tokens": most, "temperature": 0}
    if not is_stream:
        reply = client.chat.completions.with_raw_response.create(**how)
        whole = reply.parse()
        return whole.choices[0].message.content or "", whole.usage.to_dict(), dict(reply.headers)
    reply = client.chat.completions.with_raw_response.create(**how, stream=True, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in reply.parse():
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert usage is not None
    return text, usage.to_dict(), dict(reply.headers)


def converse(url: str, given: argparse.Namespace, pieces: list[str]) -> list[Json]:
    """A row a turn; the last one has no answer where it was refused."""
    messages: list[Json] = []
    rows: list[Json] = []
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=TIMEOUT_SECONDS) as client:
        for turn, piece in enumerate(pieces):
            messages.append({"role": "user", "content": piece})
            began = time.perf_counter()
            try:
                text, usage, headers = asked(client, messages, turn % 2 == 1, given.reply)
            except BadRequestError as refused:
                return [*rows, {"turn": turn, "refused": str(refused)[:200]}]
            messages.append({"role": "assistant", "content": text})
            rows.append(row(turn, usage, headers, time.perf_counter() - began))
            console.print(f"[dim]{rows[-1]}", highlight=False)
            if rows[-1].get("asked", 0) >= given.tokens:
                break
    return rows


def row(turn: int, usage: Json, headers: Json, seconds: float) -> Json:
    made = {"turn": turn, "prompt": usage["prompt_tokens"], "reply": usage["completion_tokens"]}
    if "x-infold-tokens" in headers:
        ours = dict(zip(("asked", "forwarded"), map(int, headers["x-infold-tokens"].split("/")), strict=True))
        made |= {**ours, "mode": headers["x-infold-mode"]}
    return {**made, "seconds": round(seconds, 1)}


def directly(weights: Weights, home: Path, given: argparse.Namespace, pieces: list[str]) -> list[Json]:
    engine = start(Running("llamacpp", weights, home, threads=given.threads))
    try:
        assert engine.ready is not None
        return converse(engine.ready.url, given, pieces)
    finally:
        engine.stop()


@contextlib.contextmanager
def local(weights: Weights, given: argparse.Namespace) -> Iterator[tuple[Server, int]]:
    """`infold serve --upstream local`, and the window that it tells."""
    with workspace(given.keep) as folder:
        infold = infold_server(folder, "http://127.0.0.1:9", given.serve)
        infold.command = ["local" if word == "http://127.0.0.1:9/v1" else word for word in infold.command]
        infold.environment |= {"INFOLD_SLM__MODEL": str(weights.path), "INFOLD_SLM__THREADS": str(given.threads)}
        try:
            infold.start()
            window = re.search(r"window ([\d,]+) tokens", infold.log.read_text())
            assert window is not None
            yield infold, int(window[1].replace(",", ""))
        finally:
            infold.stop()


def show(ways: dict[str, list[Json]]) -> None:
    table = Table()
    for head in ("", "turns", "refused at", "asked", "longest prompt + reply", "folded", "s a turn, p50", "max"):
        table.add_column(head, justify="right")
    for name, rows in ways.items():
        answered = [one for one in rows if "prompt" in one]
        refused = next((f"turn {one['turn'] + 1}" for one in rows if "refused" in one), "never")
        seconds = [one["seconds"] for one in answered]
        folded = sum(one.get("mode") == "folded" for one in answered)
        table.add_row(
            name, str(len(answered)), refused, f"{answered[-1].get('asked', answered[-1]['prompt']):,}",
            f"{longest(rows):,}", str(folded), f"{percentile(seconds, 0.5):.1f}", f"{max(seconds):.1f}",
        )  # fmt: skip
    console.print(table)


def longest(rows: list[Json]) -> int:
    return max((one["prompt"] + one["reply"] for one in rows if "prompt" in one), default=0)


def main() -> int:
    parser = common.arguments(__doc__ or "", EXAMPLES)
    parser.add_argument("--home", type=Path, help="a folder with the weights (default: fetched and thrown away)")
    parser.add_argument("--threads", type=int, default=1, help="that the model computes with (default 1)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of the whole conversation (default {TOKENS:,})")
    parser.add_argument("--reply", type=int, default=32, help="tokens of a reply at most (default 32)")
    given = parser.parse_args()
    given.tokens, folder = min(given.tokens, QUICK_TOKENS) if given.quick else given.tokens, given.home
    del given.home  # no matter to the result
    about = common.header("window", "a local model's window", given, N=given.tokens)
    with contextlib.ExitStack() as stack:
        home = folder or stack.enter_context(workspace())
        weights = locate(SMOLLM2.name, home) if folder else fetch(SMOLLM2, home, console.print)
        pieces = [piece for meeting in data.load(SET) for piece in told(meeting)]
        ways = {"directly": directly(weights, home, given, pieces)}
        window = SMOLLM2.window
        if not given.direct:
            infold, window = stack.enter_context(local(weights, given))
            ways["Infold"] = converse(f"{infold.url}/v1", given, pieces)
    show(ways)
    if given.save:
        common.save(about, {"window": window, "turns": ways})
    return common.verdict(given, {} if given.direct else checks(ways["Infold"], ways["directly"], window, given.tokens))


def checks(rows: list[Json], bare: list[Json], window: int, tokens: int) -> dict[str, bool]:
    return {
        "directly the engine refuses a prompt at last": any("refused" in one for one in bare),
        "through Infold it refuses none": not any("refused" in one for one in rows),
        f"the conversation has {tokens:,} tokens": rows[-1].get("asked", 0) >= tokens,
        f"no prompt and its reply are beyond {window:,} tokens": longest(rows) <= window,
        "no prompt has more tokens than we counted": all(one["prompt"] <= one["forwarded"] for one in rows),
    }


if __name__ == "__main__":
    sys.exit(main())
