"""`infold serve --upstream local`: a chat with nobody else, on real sockets, with a real engine."""

import argparse
import contextlib
import inspect
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from memory.slm.weights import Weights
from tests.owners import gone, wait_until
from tests.proxy.test_household import HEADERS, children
from tests.scripted import ScriptedUpstream
from tests.slm.tiny import WINDOW

CHILD = "-c"  # how a household's engine is told from its other children
ANSWER_TOKENS = 24
Json = dict[str, Any]
Ask = Callable[[str, list[Json]], tuple[Json, int, Any]]

CODE = inspect.getsource(argparse)
PROSE = "The ferry to Håkøya left at half past seven. Mara counted 14 crates and signed for the spare pump. ".split()
SCRIPTS = "Паром отходит в половине восьмого. 渡轮七点半出发。العبّارة تغادر 🙂 "


@contextlib.contextmanager
def serving(
    weights: Weights, dsn: str, folder: Path, upstream: str = "local", **variables: str
) -> Iterator["tuple[subprocess.Popen[str], str, str]"]:
    """The command with its children, where it listens, and what it says of the model."""
    given = {
        "DATABASE_URL": dsn,
        "INFOLD_DATA_DIR": str(folder),
        "INFOLD_EMBEDDER": "none",
        "INFOLD_SLM__MODEL": str(weights.path),
    }
    command = [sys.executable, "-m", "proxy.cli", "serve", "--port", "0", "--upstream", upstream]
    environment = os.environ | given | variables
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = re.search(r"listens on (\S+) ", process.stdout.readline())
        assert url is not None
        yield process, url[1], process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate(timeout=60)


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="sk-alice", max_retries=0, timeout=120)


def engine_of(process: "subprocess.Popen[str]") -> int:
    (pid,) = children(process.pid, CHILD)
    return pid


def said(number: int, rng: random.Random) -> str:
    """A user's message of some 500 tokens: prose, code, numbers, other scripts."""
    match number % 4:
        case 0:
            return f"Note {number}: " + " ".join(rng.choice(PROSE) for _ in range(350))
        case 1:
            start = rng.randrange(len(CODE) - 1_600)
            return f"Look at this, {number}:\n{CODE[start : start + 1_600]}"
        case 2:
            rows = (f"{rng.randrange(10**9)} {rng.random():.6f} id-{rng.randrange(16**8):08x}" for _ in range(22))
            return "\n".join(rows)
        case _:
            return SCRIPTS * 9


def by_chat(url: str, messages: list[Json]) -> tuple[Json, int, Any]:
    """The answer as it is sent again, the engine's count of the prompt, the headers."""
    with client_of(url) as client:
        reply = client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=messages, max_tokens=ANSWER_TOKENS, temperature=0
        )
    said = reply.parse()
    return {"role": "assistant", "content": said.choices[0].message.content}, said.usage.prompt_tokens, reply.headers


def by_responses(url: str, messages: list[Json]) -> tuple[Json, int, Any]:
    with client_of(url) as client:
        reply = client.responses.with_raw_response.create(
            model="gpt-4o", input=messages, max_output_tokens=ANSWER_TOKENS, temperature=0
        )
    said = reply.parse()
    return said.output[0].to_dict(), said.usage.input_tokens, reply.headers


def by_messages(url: str, messages: list[Json]) -> tuple[Json, int, Any]:
    with anthropic.Anthropic(base_url=url, api_key="sk-alice", max_retries=0, timeout=120) as client:
        reply = client.messages.with_raw_response.create(model="claude", messages=messages, max_tokens=ANSWER_TOKENS)
    said = reply.parse()
    read = said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)
    return {"role": "assistant", "content": [part.to_dict() for part in said.content]}, read, reply.headers


@pytest.mark.parametrize("ask", [by_chat, by_responses, by_messages])
def test_twenty_thousand_tokens_never_overflow_the_window(
    tiny_weights: Weights, dsn: str, tmp_path: Path, ask: Ask
) -> None:
    """The engine's own count of every prompt is within its window and never above ours; it refuses nothing."""
    rng, messages, folded, asked = random.Random(0), [], 0, 0
    with serving(tiny_weights, dsn, tmp_path) as (_, url, _):
        while asked < 20_000:
            messages.append({"role": "user", "content": said(len(messages) // 2, rng)})
            answer, theirs, headers = ask(url, messages)
            messages.append(answer)
            asked, ours = map(int, headers["x-infold-tokens"].split("/"))
            assert theirs <= ours <= theirs * 1.02 + 8
            assert theirs + ANSWER_TOKENS <= WINDOW
            folded += headers["x-infold-mode"] == "folded"
        turn = httpx.get(f"{url}/memory-manager/turns/{headers['x-infold-turn']}", headers=HEADERS, timeout=60)
        exported = httpx.get(f"{url}/memory-manager/export", headers=HEADERS, timeout=60).text.splitlines()
    turns = [line for line in map(json.loads, exported) if line["kind"] == "turn"]
    assert len(turns) == len(messages) // 2
    assert {turn["status"] for turn in turns} == {"answered"}
    assert {turn["attempts"] for turn in turns} == {1}  # a refusal would be an attempt of its own
    (attempt,) = turn.json()["attempts"]
    assert (attempt["cost_usd"], attempt["direct_usd"]) == (0, 0)
    assert folded > 10


def test_the_banner_says_what_runs_and_any_model_is_answered_by_it(
    tiny_weights: Weights, dsn: str, tmp_path: Path
) -> None:
    with serving(tiny_weights, dsn, tmp_path) as (_, url, model), client_of(url) as client:
        assert re.fullmatch(
            r"Local model: tiny, window 8,192 tokens, llamacpp, 1 thread, http://127\.0\.0\.1:\d+/v1", model
        )
        hello: Any = [{"role": "user", "content": "hello"}]
        for name in ("gpt-4o", "claude-sonnet-4-5", "nobody-knows-this"):
            said = client.chat.completions.create(model=name, messages=hello, max_tokens=3)
            assert said.model == "tiny"
        streamed = client.chat.completions.create(model="gpt-4o", messages=hello, max_tokens=3, stream=True)
        assert list(streamed)[-1].choices[0].finish_reason in ("length", "stop")
        assert client.responses.create(model="gpt-4o", input="hello", max_output_tokens=3).status == "completed"
        body = {"model": "claude-sonnet-4-5", "max_tokens": 3, "messages": hello}
        message = httpx.post(f"{url}/v1/messages", json=body, headers=HEADERS, timeout=60)
        assert message.json()["type"] == "message"
        assert client.completions.create(model="m", prompt="Once", max_tokens=3).choices
        assert [model.id for model in client.models.list()] == ["tiny"]


def test_an_engine_that_dies_comes_back_and_until_then_requests_are_refused_at_once(
    tiny_weights: Weights, dsn: str, tmp_path: Path
) -> None:
    with serving(tiny_weights, dsn, tmp_path) as (process, url, _):
        assert chat(url).status_code == 200
        before = engine_of(process)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: gone(before), 60)
        refused = chat(url)
        assert refused.status_code in (502, 503)
        assert refused.json()["error"]["type"]
        wait_until(lambda: chat(url).status_code == 200, 120)
        assert engine_of(process) != before


def test_beside_a_provider_the_model_answers_to_its_own_name(tiny_weights: Weights, dsn: str, tmp_path: Path) -> None:
    with ScriptedUpstream() as provider:
        backend = {"INFOLD_SLM__BACKEND": "llamacpp"}
        with serving(tiny_weights, dsn, tmp_path, f"{provider.url}/v1", **backend) as (_, url, model):
            assert model.startswith("Local model: tiny, ")
            assert chat(url, "tiny").json()["model"] == "tiny"
            assert chat(url, "gpt-4o").status_code == 200
    assert [json.loads(seen.body)["model"] for seen in provider.requests if seen.method == "POST"] == ["gpt-4o"]


def test_without_the_model_a_provider_is_served_all_the_same(tiny_weights: Weights, dsn: str, tmp_path: Path) -> None:
    missing = {"INFOLD_SLM__BACKEND": "llamacpp", "INFOLD_SLM__MODEL": "phi-2"}
    with ScriptedUpstream() as provider:
        with serving(tiny_weights, dsn, tmp_path, f"{provider.url}/v1", **missing) as (_, url, second_line):
            assert second_line.startswith("Memory: ")
            assert chat(url, "gpt-4o").status_code == 200


def test_the_engine_sees_no_key_and_ends_with_the_server(tiny_weights: Weights, dsn: str, tmp_path: Path) -> None:
    secrets = {"OPENAI_API_KEY": "sk-SECRET", "INFOLD_PEPPER": "SECRET"}
    with serving(tiny_weights, dsn, tmp_path, **secrets) as (process, _, _):
        engine = engine_of(process)
        assert b"SECRET" not in Path(f"/proc/{engine}/environ").read_bytes()
        assert b"SECRET" in Path(f"/proc/{process.pid}/environ").read_bytes()
        process.kill()  # nobody is left who could end it in order
        wait_until(lambda: gone(engine), 60)


def test_without_weights_and_without_a_terminal_the_command_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "proxy.cli", "serve", "--port", "0", "--upstream", "local"]
    environment = os.environ | {"INFOLD_DATA_DIR": str(tmp_path)}
    ended = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 2
    assert "`infold slm fetch smollm2-135m-instruct`" in ended.stderr
    assert not (tmp_path / "models").exists()


def chat(url: str, model: str = "gpt-4o") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=HEADERS, timeout=120)


def test_a_terminal_is_asked_before_anything_is_fetched(tmp_path: Path) -> None:
    terminal, ours = pty.openpty()
    command = [sys.executable, "-m", "proxy.cli", "serve", "--port", "0", "--upstream", "local"]
    environment = os.environ | {"INFOLD_DATA_DIR": str(tmp_path), "TERM": "dumb"}
    with subprocess.Popen(command, env=environment, stdin=ours, stdout=ours, stderr=ours) as process:
        os.close(ours)
        os.write(terminal, b"n\n")
        assert process.wait(120) == 2
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert "93 MB" in shown or "92 MB" in shown
    assert "Apache-2.0. Fetch them now? [Y/n]" in shown
    assert not (tmp_path / "models").exists()


@contextlib.contextmanager
def alone(weights: Weights, folder: Path, *options: str) -> Iterator["tuple[subprocess.Popen[str], openai.OpenAI]"]:
    """`infold slm serve`."""
    command = [sys.executable, "-m", "proxy.cli", "slm", "serve", str(weights.path), "--port", "0", *options]
    environment = os.environ | {"INFOLD_DATA_DIR": str(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            yield process, openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
        finally:
            process.kill()


@pytest.mark.parametrize("backend", ["llamacpp", "transformers"])
def test_a_model_is_served_alone(tiny_weights: Weights, tmp_path: Path, backend: str) -> None:
    with alone(tiny_weights, tmp_path, "--backend", backend) as (process, client):
        hello: Any = [{"role": "user", "content": "hello"}]
        said = client.chat.completions.create(model="any", messages=hello, max_tokens=3)
        assert said.model == "tiny"
        engine = engine_of(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert gone(engine)


def test_an_engine_that_is_served_alone_comes_back(tiny_weights: Weights, tmp_path: Path) -> None:
    with alone(tiny_weights, tmp_path) as (process, client):
        before = engine_of(process)
        os.kill(before, signal.SIGKILL)

        def answers() -> bool:
            with contextlib.suppress(openai.APIConnectionError, openai.InternalServerError):  # 503: it loads
                return bool(client.models.list().data) and engine_of(process) != before
            return False

        wait_until(answers, 120)


@pytest.mark.parametrize(("options", "told"), [
    (["--window", "9000"], "tiny has a window of 8,192 tokens"),
    (["--quantization", "8bit"], "`slm.quantization` is for transformers"),
    (["--threads", "0"], "slm.threads must be greater than or equal to 1"),
    (["--backend", "nope"], "slm.backend must be"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_a_line(tiny_weights: Weights, tmp_path: Path, options: list[str], told: str) -> None:
    command = [sys.executable, "-m", "proxy.cli", "slm", "serve", str(tiny_weights.path), "--port", "0", *options]
    environment = os.environ | {"INFOLD_DATA_DIR": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"infold: {told}")
    assert ended.stderr.count("\n") == 1
