"""`infold serve` as people run it: its processes, and how they end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from proxy.cli import banner
from proxy.config import Config
from proxy.household import beside_web
from tests.conversations import body_of, user
from tests.faults import HANG
from tests.owners import gone, wait_until
from tests.proxy.test_providers import speaking_anthropic
from tests.scripted import ScriptedUpstream, sse

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
HEADERS = {"authorization": "Bearer sk-alice"}

LONG_NOTE = "The harbour lantern burns blue. " + " ".join(f"Ship {i} has left for the open sea." for i in range(300))
"""Of more passages than are embedded with the request that adds them, so that a job is left."""


@contextlib.contextmanager
def serving(
    upstream: str, dsn: str, folder: Path, *options: str, **variables: str
) -> Iterator["tuple[subprocess.Popen[str], str]"]:
    """The command with its children, and where it listens; killed if the test did not end it."""
    given = {"DATABASE_URL": dsn, "INFOLD_DATA_DIR": str(folder), "INFOLD_EMBEDDER": "none"}
    environment = os.environ | given | variables
    command = [sys.executable, "-m", "proxy.cli", "serve", "--port", "0", "--upstream", f"{upstream}/v1", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = re.search(r"listens on (\S+) ", process.stdout.readline())
        assert url is not None
        yield process, url[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_running_stream_ends_whole_while_newcomers_are_refused(dsn, tmp_path, number):
    goes_on = threading.Event()
    head, *events = sse([*[EVENT] * 22, b"data: [DONE]\n\n"])
    upstream = ScriptedUpstream([head, *events[:2], goes_on, *events[2:]])
    with upstream, serving(upstream.url, dsn, tmp_path) as (process, url):
        body = body_of([user("tell me")], stream=True)
        with httpx.stream("POST", f"{url}/v1/chat/completions", content=body, headers=HEADERS, timeout=60) as answer:
            pieces = answer.iter_bytes()
            got = next(pieces)
            process.send_signal(number)
            assert refused_in(url, 60)
            goes_on.set()
            got += b"".join(pieces)
        assert got.count(b"word") == 22
        assert got.endswith(b"data: [DONE]\n\n")
        assert process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_streams_of_events_and_programs_that_wait_end_as_soon_as_the_server_is_told_to_stop(dsn, tmp_path, number):
    """They would go on as long as somebody listens, and hold the server as long as `drain_seconds`."""
    with ScriptedUpstream() as upstream, serving(upstream.url, dsn, tmp_path) as (process, url):
        ours, waiting = f"{url}/memory-manager", HTTPConnection(url.removeprefix("http://"), timeout=60)
        with httpx.stream("GET", f"{ours}/events", headers=HEADERS, timeout=60) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "retry: 1000"
            waiting.request("GET", "/memory-manager/hil/pending?wait=60", headers=HEADERS)
            elsewhere = {**HEADERS, "x-session-id": "another"}
            httpx.post(f"{ours}/hil/request", json={"question": "?"}, headers=elsewhere)
            assert any(line == "event: human_request" for line in lines)
            process.send_signal(number)
            told = time.monotonic()
            list(lines)  # to its proper end
            assert json.loads(waiting.getresponse().read())["requests"] == []
            assert time.monotonic() - told < HANG
        waiting.close()
        assert process.wait(60) == 0


def test_a_websocket_passes_and_a_silent_one_does_not_hold_up_the_end(dsn, tmp_path):
    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        upstream = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        with serving(upstream, dsn, tmp_path) as (process, url):
            with connect(url.replace("http", "ws") + "/v1/realtime", proxy=None) as client:
                client.send("hello")
                assert client.recv(timeout=60) == "hello"
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
        server.shutdown()


def refused_in(url: str, seconds: float) -> bool:
    """Does nobody listen any more, within so many seconds?"""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/healthz", timeout=1)
        except httpx.ConnectError:
            return True
        except httpx.TransportError:  # it stood in the queue of the listener as that was closed
            pass
        time.sleep(0.05)
    return False


def test_a_second_signal_cuts_the_streams(dsn, tmp_path):
    upstream = ScriptedUpstream(lambda seen: sse([EVENT] * 500, pause=0.2))
    with upstream, serving(upstream.url, dsn, tmp_path) as (process, url):
        body = body_of([user("tell me")], stream=True)
        with httpx.stream("POST", f"{url}/v1/chat/completions", content=body, headers=HEADERS, timeout=60) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            process.send_signal(signal.SIGINT)
            assert refused_in(url, 60)
            process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
        assert process.wait(60) == 0


def test_a_port_that_is_taken_is_told_in_a_line(dsn, tmp_path):
    with ScriptedUpstream() as upstream, serving(upstream.url, dsn, tmp_path) as (_, url):
        port = url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "proxy.cli", "serve", "--port", port]
        environment = os.environ | {"DATABASE_URL": dsn, "INFOLD_DATA_DIR": str(tmp_path)}
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    assert second.returncode == 1
    assert second.stderr == f"infold: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(("listens", "told"), [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]"), ("10.1.2.3", "10.1.2.3")])
def test_the_banner_tells_an_address_that_one_can_connect_to(capsys, listens, told):
    banner(Config(host=listens.strip("[]")), f"http://{listens}:8808")
    assert f'OpenAI(base_url="http://{told}:8808/v1")' in capsys.readouterr().out


def test_a_worker_that_dies_is_replaced(dsn, tmp_path):
    with ScriptedUpstream() as upstream, serving(upstream.url, dsn, tmp_path) as (process, url):
        ready = httpx.get(f"{url}/readyz", timeout=60)
        assert json.loads(ready.content)["status"] == "ready"
        (web,) = children(process.pid, "web")
        os.kill(web, signal.SIGKILL)
        wait_until(lambda: gone(web), 60)
        again = httpx.get(f"{url}/healthz", timeout=60)  # the socket is the parent's, so the request waits
        assert again.status_code == 200
        assert children(process.pid, "web") != [web]


def test_jobs_are_done_by_a_worker_elsewhere_and_questions_are_still_embedded_here(dsn, tmp_path):
    """Two containers in small: they share the database and nothing else."""
    apart = {"INFOLD_EMBEDDER": "builtin", "INFOLD_JOB_WORKER": "false"}
    with ScriptedUpstream() as upstream, serving(upstream.url, dsn, tmp_path, **apart) as (process, url):
        assert not children(process.pid, "worker")
        assert len(children(process.pid, "embed")) == 1
        item = {"content": LONG_NOTE, "content_type": "note"}
        stored = httpx.post(f"{url}/memory-manager/items/add", json=item, headers=HEADERS, timeout=60).json()["item_id"]
        wait_until(lambda: pending(url) == 1, 60)
        time.sleep(1.5)  # longer than a job worker that runs takes
        assert pending(url) == 1

        with worker(dsn, tmp_path / "elsewhere") as elsewhere:
            wait_until(lambda: pending(url) == 0, 60)
            question = {"query": "Which colour does a lamp at the port have?", "limit": 1}

            def found_by_meaning() -> bool:
                """A question whose vector comes too late is looked for by its words alone."""
                searched = httpx.post(f"{url}/memory-manager/items/search", json=question, headers=HEADERS, timeout=60)
                assert [found["id"] for found in searched.json()["results"]] == [stored]
                return "exact" in searched_by(url)

            wait_until(found_by_meaning, 60)
            elsewhere.terminate()
            assert elsewhere.wait(60) == 0
        process.terminate()
        assert process.wait(60) == 0


@contextlib.contextmanager
def worker(dsn: str, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`infold worker` alone."""
    environment = os.environ | {"DATABASE_URL": dsn, "INFOLD_DATA_DIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy.cli", "worker"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def metrics(url: str, name: str) -> list[tuple[str, float]]:
    """Labels and value of each of a metric's lines."""
    found = re.findall(rf"^{name}({{.*}})? (\S+)$", httpx.get(f"{url}/metrics", timeout=60).text, re.MULTILINE)
    return [(labels, float(value)) for labels, value in found]


def pending(url: str) -> float:
    return metrics(url, "infold_items_embedding_pending")[0][1]


def searched_by(url: str) -> set[str]:
    counted = metrics(url, "infold_item_searches_total")
    return {re.findall(r'plan="(\w+)"', labels)[0] for labels, count in counted if count}


@pytest.mark.parametrize(("jobs", "embedder", "command"), [
    (True, "builtin", "worker"),
    (True, "none", "worker"),
    (False, "builtin", "embed"),
    (False, "none", None),
    (False, "http://127.0.0.1:9/v1#model", None),
])  # fmt: skip
def test_what_runs_beside_the_web_workers(jobs, embedder, command):
    assert beside_web(Config(job_worker=jobs, embedder=embedder)) == command


def test_the_embedder_alone_says_who_starts_it():
    command = [sys.executable, "-m", "proxy.cli", "embed"]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert alone.returncode == 1
    assert alone.stderr == "infold: `infold serve` starts this by itself, where `job_worker` is false\n"


def children(parent: int, command: str) -> list[int]:
    pids = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [pid for pid in pids if command in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]


def test_a_provider_is_asked_by_a_process_that_starts_then_and_web_workers_stay_without_litellm(
    dsn, tmp_path, monkeypatch
):
    with ScriptedUpstream(speaking_anthropic) as upstream:
        claude = {"provider": "anthropic", "url": upstream.url, "models": ["claude-*"], "api_key_env": "KEY_OF_CLAUDE"}
        plain = {"url": upstream.url, "models": ["plain"]}
        monkeypatch.setenv("INFOLD_UPSTREAMS", json.dumps({"claude": claude, "plain": plain}))
        monkeypatch.setenv("KEY_OF_CLAUDE", "SECRET-claude")
        with serving("http://127.0.0.1:9", dsn, tmp_path) as (process, url):
            until_ready(url)
            assert not children(process.pid, "providers")
            (web,) = children(process.pid, "web")
            direct = body_of([user("hi")], "plain")  # a first conversation loads vocabulary and price map
            httpx.post(f"{url}/v1/chat/completions", content=direct, headers=HEADERS, timeout=60).raise_for_status()
            before = resident_mib(web)
            for _ in range(2):
                body = body_of([user("hi")], "claude-x")
                got = httpx.post(f"{url}/v1/chat/completions", content=body, headers=HEADERS, timeout=60)
                assert got.json()["choices"][0]["message"]["content"] == "Good morning."
            (litellm,) = children(process.pid, "providers")
            print(f"web {before:.0f} -> {resident_mib(web):.0f} MiB, litellm {resident_mib(litellm):.0f} MiB")
            assert resident_mib(litellm) > 120
            assert resident_mib(web) < before + 20
            assert b"SECRET" not in Path(f"/proc/{litellm}/environ").read_bytes()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert not Path(f"/proc/{litellm}").exists()
    keys = [seen.header(b"x-api-key") for seen in upstream.requests if seen.method == "POST"]
    assert keys == [None, b"SECRET-claude", b"SECRET-claude"]


def until_ready(url: str) -> None:
    while httpx.get(f"{url}/readyz", timeout=60).status_code != 200:
        time.sleep(0.1)


def resident_mib(number: int) -> float:
    """How much memory a process has."""
    told = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
    assert told is not None
    return int(told[1]) / 1024
