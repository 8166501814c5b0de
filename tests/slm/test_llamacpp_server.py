"""llama.cpp with adapters that come and go: what only its way of carrying them can get wrong.

What every engine that lends adapters promises is in `test_adapting.py`.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from memory.errors import EngineError
from memory.settings import Slm
from memory.slm.adapters import Adapter, BadAdapter, foundation_of
from memory.slm.bases import Bases
from memory.slm.convert import converted
from memory.slm.engine import Engine, Ready
from memory.slm.flow import Flow
from memory.slm.header import gguf_header
from memory.slm.known import KnownAdapters
from memory.slm.llamacpp_child import Llama, running_of
from memory.slm.llamacpp_server import Lending, raw
from memory.slm.naming import adapter_name
from memory.slm.weights import Weights
from tests.owners import gone, wait_until
from tests.slm.engines import running, url_of
from tests.slm.lora import published
from tests.slm.small import small_model
from tests.slm.test_llamacpp import below

HELLO = [{"role": "user", "content": "Tell me about rain."}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def adapters(tiny_weights: Weights, home: Path) -> list[Adapter]:
    base = foundation_of(converted(tiny_weights.path, home))
    return [published(home, f"t{n}", base, n) for n in range(3)]


@pytest.fixture
def engine(tiny_weights: Weights, home: Path) -> Iterator[Engine]:
    with running(tiny_weights, home, adapters=home / "adapters") as started:
        yield started


def named(engine: Engine, number: int) -> str:
    return adapter_name(engine.name, number, b"t")


def post(engine: Engine, path: str, body: object, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key or engine.key}"}
    return httpx.post(f"{url_of(engine)}/{path}", json=body, headers=headers, timeout=120)


def load(engine: Engine, number: int, adapter: Adapter) -> str:
    name = named(engine, number)
    got = post(engine, "load_lora_adapter", {"lora_name": name, "lora_path": str(adapter.folder)})
    assert got.status_code == 200, got.text
    return name


def said(engine: Engine, model: str, **more: Any) -> str:
    asked = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 0, **more}
    text: str = post(engine, "chat/completions", asked).json()["choices"][0]["message"]["content"]
    return text


def responded(engine: Engine, model: str) -> str:
    asked = {"model": model, "input": HELLO[0]["content"], "max_output_tokens": 12, "temperature": 0}
    text: str = post(engine, "responses", asked).json()["output"][0]["content"][0]["text"]
    return text


def wrote(engine: Engine) -> str:
    asked = {"model": "any", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    text: str = post(engine, "messages", asked).json()["content"][0]["text"]
    return text


def test_what_one_answered_with_an_adapter_is_not_taken_up_by_the_bare_model_in_any_dialect(
    engine: Engine, adapters: list[Adapter]
) -> None:
    """llama.cpp takes the same prompt for computed already, and a request in Messages can name no adapters."""
    bare = said(engine, engine.name)
    name = load(engine, 1, adapters[0])
    adapted = said(engine, name)
    assert (adapted != bare, wrote(engine)) == (True, bare)
    assert (said(engine, name), said(engine, engine.name)) == (adapted, bare)
    assert (responded(engine, name), responded(engine, engine.name), wrote(engine)) == (adapted, bare, bare)
    assert (said(engine, name), wrote(engine), said(engine, name)) == (adapted, bare, adapted)


def test_a_request_that_was_refused_leaves_no_trace_of_an_adapter(engine: Engine, adapters: list[Adapter]) -> None:
    bare, name = said(engine, engine.name), load(engine, 1, adapters[0])
    adapted = said(engine, name)
    got = post(engine, "chat/completions", {"model": engine.name, "messages": "no list"})
    assert (got.status_code >= 400, adapted != bare, wrote(engine)) == (True, True, bare)


def test_messages_name_no_adapter(engine: Engine, adapters: list[Adapter]) -> None:
    name = load(engine, 1, adapters[0])
    got = post(engine, "messages", {"model": name, "messages": HELLO, "max_tokens": 3})
    assert (got.status_code, got.json()["error"]["param"]) == (400, "model")


def test_who_names_llama_cpps_own_numbers_gets_the_bare_model(engine: Engine, adapters: list[Adapter]) -> None:
    """A proxy hands on whatever its clients send."""
    bare, name = said(engine, engine.name), load(engine, 1, adapters[0])
    adapted = said(engine, name)
    scales = [{"id": 0, "scale": 1.0}]
    assert said(engine, engine.name, lora=scales) == bare != adapted
    body = json.dumps({"messages": HELLO, "max_tokens": 12, "temperature": 0, "lora": scales})
    twice = body[:-1] + ', "lora": [{"id": 0, "scale": 1.0}]}'
    got = httpx.post(f"{url_of(engine)}/chat/completions", content=twice, timeout=60)
    assert got.json()["choices"][0]["message"]["content"] == bare
    root = url_of(engine).removesuffix("/v1")
    for path in ("/lora-adapters", "/v1/lora-adapters", "/completion", "/slots", "/props"):
        assert httpx.post(root + path, json=scales, timeout=60).status_code == 404
        assert httpx.get(root + path, timeout=60).status_code == 404


def test_llama_cpp_behind_it_answers_nobody_else(engine: Engine, adapters: list[Adapter]) -> None:
    load(engine, 1, adapters[0])
    (inner,) = below(engine.pid)
    (port,) = listening(inner)
    url = f"http://127.0.0.1:{port}"
    asked = {"messages": HELLO, "max_tokens": 2, "lora": [{"id": 0, "scale": 1.0}]}
    for key in ("none", engine.key):
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=60).status_code == 401
        assert httpx.get(f"{url}/lora-adapters", headers=headers, timeout=60).status_code == 401


def opened(pid: int) -> Iterator[str]:
    """What a process has open."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            yield os.readlink(file)


def listening(pid: int) -> list[int]:
    """The ports of a process."""
    own = set(opened(pid))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]


def test_a_stream_says_which_adapter_writes_it(engine: Engine, adapters: list[Adapter]) -> None:
    name = load(engine, 1, adapters[0])
    asked = {"model": name, "messages": HELLO, "max_tokens": 12, "temperature": 0, "stream": True}
    lines = [line.removeprefix("data: ") for line in post(engine, "chat/completions", asked).text.splitlines() if line]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert (lines[-1], {chunk["model"] for chunk in chunks}) == ("[DONE]", {name})
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == said(engine, name)


def test_what_is_being_said_is_said_to_its_end_before_an_adapter_comes(engine: Engine, adapters: list[Adapter]) -> None:
    """And who asks meanwhile waits for both."""
    asked = {"messages": HELLO, "max_tokens": 3_000, "ignore_eos": True, "temperature": 0, "stream": True}
    order: list[str] = []

    def loading() -> None:
        load(engine, 1, adapters[0])
        order.append("loaded")

    with httpx.stream("POST", f"{url_of(engine)}/chat/completions", json=asked, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")
        thread = threading.Thread(target=loading)
        thread.start()
        rest = [line for line in lines if line.startswith("data: {")]
        order.append("said")
    later = said(engine, engine.name)
    thread.join()
    assert len(rest) > 2_000
    assert json.loads(rest[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert order == ["said", "loaded"]
    assert said(engine, engine.name) == later != said(engine, named(engine, 1))


def test_a_client_that_reads_nothing_keeps_no_adapter_out(engine: Engine, adapters: list[Adapter]) -> None:
    """Its answer is written to its end all the same, more of it than the sockets hold."""
    asked = {"messages": HELLO, "max_tokens": 2_000, "ignore_eos": True, "logprobs": True, "top_logprobs": 60}
    body = json.dumps({**asked, "stream": True})
    url = httpx.URL(url_of(engine))
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect((url.host, url.port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        load(engine, 1, adapters[0])


def test_an_engine_whose_llama_cpp_dies_ends(engine: Engine) -> None:
    """Whoever started it starts it anew."""
    (inner,) = below(engine.pid)
    os.kill(inner, signal.SIGKILL)
    wait_until(lambda: engine.poll() is not None, 60)


def test_the_process_before_an_adapter_came_is_gone(engine: Engine, adapters: list[Adapter]) -> None:
    (before,) = below(engine.pid)
    load(engine, 1, adapters[0])
    (after,) = below(engine.pid)
    assert (gone(before), before != after) == (True, True)
    assert os.getpriority(os.PRIO_PROCESS, after) == 10


def test_nothing_of_an_adapter_is_written_anywhere(
    engine: Engine, adapters: list[Adapter], home: Path, tmp_path: Path
) -> None:
    def files() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in home.rglob("*")}

    before = files()
    said(engine, load(engine, 1, adapters[0]))
    assert files() == before
    assert not [link for link in opened(engine.pid) if "lora" in link]


def test_a_model_that_was_never_made_trainable_takes_no_adapter(
    tiny_weights: Weights, adapters: list[Adapter], home: Path, tmp_path: Path
) -> None:
    with running(tiny_weights, tmp_path, adapters=home / "adapters") as engine:
        asked = {"lora_name": named(engine, 1), "lora_path": str(adapters[0].folder)}
        got = post(engine, "load_lora_adapter", asked)
        assert (got.status_code, got.json()["error"]["code"]) == (400, "bad_adapter")
        assert "has not been made into a folder that can be trained" in got.json()["error"]["message"]


async def test_what_llama_cpp_serves_is_what_is_trained(
    tiny_weights: Weights, adapters: list[Adapter], home: Path
) -> None:
    """Also where a folder for transformers lies beside the .gguf file."""
    place = home / "both"
    small_model(place)
    shutil.copyfile(tiny_weights.path, place / "tiny.gguf")
    served = await Bases(Slm(backend="llamacpp", model=str(place)), home, {}).base()
    assert served.foundation.hash == adapters[0].meta["base_hash"]
    other = await Bases(Slm(backend="transformers", model=str(place)), home, {}).base()
    assert other.folder == place


class Stubborn(Llama):
    """A llama.cpp that does not start with two adapters."""

    error: Exception = EngineError("no memory")
    starts = 0

    def start(self, adapters: Mapping[str, Adapter], wanted: str | None = None) -> Ready:
        self.starts += 1
        if len(adapters) > 1:
            self.stop()
            raise self.error
        return super().start(adapters, wanted)


@pytest.fixture
def llama(tiny_weights: Weights, home: Path) -> Iterator[Stubborn]:
    told = {"path": str(tiny_weights.path), "kind": "gguf", "name": "tiny", "home": str(home), "threads": 1}
    how = running_of({**told, "window": None, "quantization": "none", "template": None})
    made = Stubborn(how, gguf_header(tiny_weights.path))
    made.start({})
    yield made
    made.stop()


@pytest.fixture
def lending(llama: Stubborn, tiny_weights: Weights, home: Path) -> Lending:
    base = foundation_of(converted(tiny_weights.path, home))
    return Lending("tiny", "key", 512, llama, KnownAdapters(home / "adapters", lambda: base))


async def test_an_adapter_that_is_loaded_twice_at_once_is_carried_once(
    llama: Stubborn, lending: Lending, adapters: list[Adapter]
) -> None:
    """Who asks waits a minute, and asks again."""
    await asyncio.gather(*(lending.learn("one", str(adapters[0].folder)) for _ in range(3)))
    assert (llama.held, llama.starts) == (("one",), 2)  # bare, and with it


@pytest.mark.parametrize("error", [EngineError("no memory"), OSError("no memory")])
async def test_an_adapter_with_which_it_does_not_start_is_refused_and_the_others_go_on(
    llama: Stubborn, lending: Lending, adapters: list[Adapter], error: Exception
) -> None:
    llama.error = error
    await lending.learn("one", str(adapters[0].folder))
    with pytest.raises(BadAdapter, match="does not start with the adapter: no memory"):
        await lending.learn("two", str(adapters[1].folder))
    assert (tuple(lending.known), llama.held, llama.has_died()) == (("one",), (), False)
    heard = []

    async def send(message: Any) -> None:
        heard.append(message)

    body = {"messages": HELLO, "max_tokens": 3}
    await lending.answer("/v1/chat/completions", raw(body), "one", send)
    assert (heard[0]["status"], llama.held) == (200, ("one",))
    assert b'"model":"one"' in b"".join(message.get("body", b"") for message in heard)


async def test_whoever_wants_to_be_alone_waits_for_those_before_and_not_for_those_after() -> None:
    flow, order = Flow(), []
    inside, leave = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with flow.shared():
            inside.set()
            await leave.wait()
            order.append("first")

    async def alone() -> None:
        async with flow.alone():
            order.append("alone")

    async def later() -> None:
        async with flow.shared():
            order.append("later")

    async with asyncio.TaskGroup() as group:
        group.create_task(first())
        await inside.wait()
        group.create_task(alone())
        await asyncio.sleep(0)
        group.create_task(later())
        await asyncio.sleep(0)
        leave.set()
    assert order == ["first", "alone", "later"]
