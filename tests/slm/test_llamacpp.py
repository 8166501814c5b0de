"""llama.cpp as a process of its own: what it answers, how it refuses, when it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import httpx
import pytest

from memory.errors import EngineError
from memory.slm.engine import Engine, Running, start
from memory.slm.weights import Weights, locate
from memory.told import overflow_in_error
from tests.owners import gone, wait_until
from tests.slm.engines import LONG, chat, client_of, running, url_of
from tests.slm.tiny import WINDOW, lora, tiny

PARENT = """
import sys, time
from pathlib import Path
from memory.slm.engine import Engine, Running, start
from memory.slm.weights import locate
path, home, waits, *adapters = sys.argv[1:]
running = Running("llamacpp", locate(path, Path(home)), Path(home), adapters=Path(adapters[0]) if adapters else None)
if waits == "waits":
    engine = start(running)
else:
    engine = Engine(running)
    engine.spawn(0)
print(engine.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module", params=["by itself", "lending adapters"])
def engine(
    tiny_weights: Weights, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Engine]:
    home = tmp_path_factory.mktemp("home")
    lends = request.param == "lending adapters"
    with running(tiny_weights, home, adapters=home / "adapters" if lends else None) as started:
        yield started


def test_it_says_where_it_listens_and_how_large_its_window_is(engine: Engine, tiny_weights: Weights) -> None:
    assert engine.ready is not None
    assert engine.ready.url.startswith("http://127.0.0.1:")
    assert (engine.ready.window, engine.name) == (WINDOW, tiny_weights.name)


def test_a_chat_is_answered_whatever_model_it_names(engine: Engine) -> None:
    said = client_of(engine).chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "hello"}], max_tokens=5
    )
    assert said.model == engine.name
    assert said.usage is not None
    assert said.usage.completion_tokens <= 5
    assert said.choices[0].finish_reason in ("length", "stop")


def test_a_stream_says_the_same_as_a_plain_answer(engine: Engine) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 0}
    plain = client_of(engine).chat.completions.create(**asked)  # type: ignore[call-overload]
    chunks = client_of(engine).chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == plain.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3


def test_texts_are_completed_and_models_listed(engine: Engine) -> None:
    client = client_of(engine)
    assert client.completions.create(model="m", prompt="Once upon", max_tokens=3).usage.completion_tokens <= 3  # type: ignore[union-attr]
    assert [model.id for model in client.models.list()] == [engine.name]


def test_responses_and_messages_are_answered_too(engine: Engine) -> None:
    said = client_of(engine).responses.create(model="m", input="hello", max_output_tokens=4)
    assert said.usage is not None
    body = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    got = httpx.post(f"{url_of(engine)}/messages", json=body, timeout=60)
    assert (got.status_code, got.json()["type"]) == (200, "message")


def test_who_asks_for_no_length_gets_no_endless_answer(engine: Engine) -> None:
    said = chat(engine, LONG, max_tokens=None, ignore_eos=True).json()
    assert said["usage"]["completion_tokens"] == WINDOW // 8
    assert said["choices"][0]["finish_reason"] == "length"


def test_an_answer_keeps_to_a_json_schema(engine: Engine) -> None:
    """Noise, but of the form that was asked for."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema | {"additionalProperties": False}}}
    said = chat(engine, response_format=form, max_tokens=200).json()["choices"][0]["message"]["content"]
    assert type(json.loads(said)["a"]) is bool


def test_an_adapter_changes_what_is_said(engine: Engine, tiny_weights: Weights, tmp_path: Path) -> None:
    with running(tiny_weights, tmp_path, adapter=lora(tmp_path / "lora.gguf")) as adapted:
        said = [chat(one, temperature=0, max_tokens=8).json()["choices"][0]["message"] for one in (engine, adapted)]
    assert said[0] != said[1]


def test_an_adapter_of_another_kind_is_refused(tiny_weights: Weights, tmp_path: Path) -> None:
    assert "is no .gguf file" in refused(tiny_weights, tmp_path, adapter=tmp_path)
    assert "either one adapter from its start" in refused(tiny_weights, tmp_path, adapter=tmp_path, adapters=tmp_path)


def test_a_prompt_beyond_the_window_is_refused_with_both_numbers(engine: Engine) -> None:
    got = chat(engine, "word " * 9_000)
    assert got.status_code == 400
    assert got.json()["error"]["message"]
    overflow = overflow_in_error(got.status_code, got.content)
    assert overflow is not None
    assert overflow.window == WINDOW
    assert overflow.counted is not None
    assert overflow.counted > 9_000


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"\xff": 1}', b'{"model": "\xff", "messages": []}'])
def test_a_request_that_is_none_is_refused(engine: Engine, body: bytes) -> None:
    got = httpx.post(f"{url_of(engine)}/chat/completions", content=body, timeout=60)
    assert got.status_code in (400, 500)  # llama.cpp takes some for an error of its own
    assert got.json()["error"]["message"]
    assert chat(engine).status_code == 200


def test_no_web_page_may_read_what_it_says(engine: Engine) -> None:
    got = httpx.get(f"{url_of(engine)}/models", headers={"origin": "http://example.com"}, timeout=60)
    assert not got.headers.get("access-control-allow-origin")


def test_it_yields_to_everybody_else(engine: Engine) -> None:
    assert os.getpriority(os.PRIO_PROCESS, engine.pid) == 10


@pytest.mark.parametrize("lends", [False, True])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(smollm2: Weights, tmp_path: Path, stream: bool, lends: bool) -> None:
    """What was left behind would take minutes; whoever comes next does not wait for it."""
    with running(smollm2, tmp_path, adapters=tmp_path if lends else None) as real:
        asked = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 8_000, "ignore_eos": True}
        with socket.create_connection(httpx.URL(url_of(real)).netloc.decode().split(":")) as leaving:  # type: ignore[arg-type]
            body = json.dumps({**asked, "stream": stream}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            leaving.sendall(head.encode() + body)
            at_work = (below(real.pid) or [real.pid])[0]
            wait_until(lambda: cpu_seconds(at_work) > 3, 120)
        assert chat(real).status_code == 200


def below(pid: int) -> list[int]:
    """The processes that it started, whichever thread did."""
    found = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for children in found for child in children]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("lends", [False, True])
@pytest.mark.parametrize("waits", ["waits", "does not wait"])
def test_it_ends_with_its_parent_even_if_that_is_killed(
    tiny_weights: Weights, tmp_path: Path, waits: str, lends: bool
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = [str(tiny_weights.path), str(tmp_path), waits, *([str(tmp_path)] if lends else [])]
    with subprocess.Popen([sys.executable, "-c", PARENT, *told], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        there = [child, *below(child)]
        assert waits != "waits" or len(there) == 1 + lends
        parent.kill()
    wait_until(lambda: all(map(gone, there)), 60)


def test_a_stop_ends_it_with_what_still_runs(tiny_weights: Weights, tmp_path: Path) -> None:
    with running(tiny_weights, tmp_path) as started:
        pid = started.pid
    assert gone(pid)


@pytest.mark.parametrize("lends", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(tiny_weights: Weights, tmp_path: Path, number: signal.Signals, lends: bool) -> None:
    """llama.cpp's own handlers end its server and leave the process behind."""
    with running(tiny_weights, tmp_path, adapters=tmp_path if lends else None) as started:
        there = below(started.pid)
        os.kill(started.pid, number)
        wait_until(lambda: started.poll() is not None and all(map(gone, there)), 60)


# What keeps it from starting.


def refused(weights: Weights, home: Path, **how: object) -> str:
    with pytest.raises(EngineError) as told:
        start(Running(**{"backend": "llamacpp", "weights": weights, "home": home} | how))  # type: ignore[arg-type]
    return str(told.value)


@pytest.mark.parametrize("lends", [False, True])
def test_without_the_extra_it_says_what_to_install(
    tiny_weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lends: bool
) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ModuleNotFoundError(\"No module named 'xllamacpp'\")")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = refused(tiny_weights, tmp_path, adapters=tmp_path if lends else None)
    assert "pip install 'infold[slm-cpu]'" in told


def test_a_file_that_is_cut_off_is_told(tiny_weights: Weights, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_weights.path.read_bytes()[:5_000_000])
    told = refused(Weights(broken, "gguf", None, "broken"), tmp_path)
    assert str(broken) in told


def test_what_llama_cpp_says_of_a_file_is_told(tmp_path: Path) -> None:
    strange = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(strange, "nonesuch")
    writer.add_uint32("nonesuch.context_length", 512)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    assert "unknown model architecture: 'nonesuch'" in refused(Weights(strange, "gguf", None, "strange"), tmp_path)


@pytest.mark.parametrize("lends", [False, True])
def test_a_port_that_is_taken_is_told(tiny_weights: Weights, tmp_path: Path, lends: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(tiny_weights, tmp_path, port=port, adapters=tmp_path if lends else None)
        assert told.startswith(f"cannot listen on 127.0.0.1:{port}")


def test_a_window_beyond_the_models_own_is_refused(tiny_weights: Weights, tmp_path: Path) -> None:
    told = refused(tiny_weights, tmp_path, window=WINDOW + 1)
    assert told == f"tiny has a window of {WINDOW:,} tokens; set `slm.window` to that or less, not {WINDOW + 1:,}"


def test_a_smaller_window_is_served(tiny_weights: Weights, tmp_path: Path) -> None:
    with running(tiny_weights, tmp_path, window=1_024) as small:
        assert small.ready is not None
        assert small.ready.window == 1_024
        assert chat(small, "word " * 2_000).status_code == 400


def test_a_model_without_a_chat_template_completes_and_refuses_to_chat(smollm2: Weights, tmp_path: Path) -> None:
    """llama.cpp alone would take another model's template, and the model would answer nonsense."""
    bare = locate(str(tiny(smollm2.path, tmp_path / "bare.gguf", template=False)), tmp_path)
    with running(bare, tmp_path) as started:
        assert started.ready is not None
        assert started.ready.message_tokens is None
        got = chat(started)
        assert got.status_code == 400
        assert "this model has no chat template" in got.json()["error"]["message"]
        assert client_of(started).completions.create(model="m", prompt="Once", max_tokens=2).choices
