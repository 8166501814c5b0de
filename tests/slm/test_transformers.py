"""transformers as a process of its own: what it answers, how it refuses, in which forms it runs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from memory.errors import EngineError
from memory.slm.engine import Engine, Running, start
from memory.slm.weights import Weights, locate
from memory.slm.writing import CHUNK_TOKENS
from memory.told import overflow_in_error, windows_in_models_reply
from tests.owners import gone, wait_until
from tests.slm.engines import LONG, chat, client_of, running, url_of
from tests.slm.test_llamacpp import cpu_seconds, refused
from tests.slm.tiny import WINDOW

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def engine(tiny_weights: Weights, home: Path) -> Iterator[Engine]:
    """Started on a .gguf file, which is converted."""
    with running(tiny_weights, home, backend="transformers") as started:
        yield started


@pytest.fixture(scope="module")
def folder(engine: Engine, home: Path) -> Weights:
    """What it made of that file."""
    (made,) = (home / "converted").iterdir()
    return locate(str(made), home)


def test_what_it_made_of_a_file_says_and_counts_what_llama_cpp_does(
    engine: Engine, tiny_weights: Weights, tmp_path: Path
) -> None:
    with running(tiny_weights, tmp_path) as other:
        assert engine.ready is not None
        assert other.ready is not None
        assert engine.ready.counts == other.ready.counts
        assert (engine.ready.message_tokens, engine.ready.reply_tokens) == (
            other.ready.message_tokens,
            other.ready.reply_tokens,
        )
        both = [chat(one, temperature=0, max_tokens=16).json() for one in (engine, other)]
    ours, theirs = (said["choices"][0]["message"]["content"] for said in both)
    assert ours == theirs
    assert len({said["usage"]["prompt_tokens"] for said in both}) == 1


def test_a_stream_says_the_same_as_a_plain_answer(engine: Engine) -> None:
    asked = {"model": "m", "messages": HELLO, "max_tokens": 12, "temperature": 0}
    plain = client_of(engine).chat.completions.create(**asked)
    chunks = list(
        client_of(engine).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == plain.choices[0].message.content
    assert len(pieces) > 5
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == plain.usage.prompt_tokens - 1


def test_a_conversation_that_goes_on_is_not_read_anew(engine: Engine) -> None:
    first = client_of(engine).chat.completions.create(model="m", messages=HELLO, max_tokens=4)
    longer = [*HELLO, {"role": "assistant", "content": first.choices[0].message.content}, *HELLO]
    second = client_of(engine).chat.completions.create(model="m", messages=longer, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_the_prompt_that_is_kept_changes_no_answer(engine: Engine) -> None:
    def said(text: str) -> str:
        answer: str = chat(engine, text, temperature=0, max_tokens=12).json()["choices"][0]["message"]["content"]
        return answer

    once = [said("one two three"), said("one two four"), said("five")]
    assert [said("five"), said("one two four"), said("one two three")] == once[::-1]


def test_a_seed_makes_chance_repeat(engine: Engine) -> None:
    said = {
        seed: [chat(engine, seed=seed, max_tokens=12).json()["choices"][0]["message"]["content"] for _ in range(2)]
        for seed in (1, 2)
    }
    assert said[1][0] == said[1][1]
    assert said[1] != said[2]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop(engine: Engine, stream: bool) -> None:
    asked = {"model": "m", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    whole = client_of(engine).completions.create(**asked).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    said = client_of(engine).completions.create(**asked, stop=[stop], stream=stream)
    choices = [chunk.choices[0] for chunk in said] if stream else [said.choices[0]]
    assert "".join(choice.text for choice in choices) == whole.partition(stop)[0]
    assert choices[-1].finish_reason == "stop"


def test_the_list_of_models_tells_the_window(engine: Engine) -> None:
    got = httpx.get(f"{url_of(engine)}/models", timeout=60)
    assert windows_in_models_reply(got.content) == {engine.name: WINDOW}


def test_a_prompt_beyond_the_window_is_refused_with_both_numbers(engine: Engine) -> None:
    got = chat(engine, "word " * 9_000)
    error = got.json()["error"]
    assert (got.status_code, error["code"], error["type"]) == (
        400,
        "context_length_exceeded",
        "invalid_request_error",
    )
    overflow = overflow_in_error(got.status_code, got.content)
    assert overflow is not None
    assert overflow.window == WINDOW
    assert overflow.counted is not None
    assert overflow.counted > 9_000


def test_an_answer_ends_where_the_window_does(engine: Engine) -> None:
    said = chat(engine, "word " * 8_100, max_tokens=500).json()
    assert said["usage"]["total_tokens"] <= WINDOW


@pytest.mark.parametrize(("body", "param"), [
    ({"messages": HELLO, "n": 2}, "n"),
    ({"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": HELLO, "logprobs": True}, "logprobs"),
    ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ({"messages": "hello"}, None),
    ({}, None),
    ("{", None),
    ("[" * 5_000, None),
])  # fmt: skip
def test_what_it_cannot_do_is_refused_in_openais_form(engine: Engine, body: Any, param: str | None) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    got = httpx.post(f"{url_of(engine)}/chat/completions", content=content, timeout=60)
    error = got.json()["error"]
    assert (got.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"]


def test_other_endpoints_are_told_apart(engine: Engine) -> None:
    with pytest.raises(openai.NotFoundError, match="this engine has no POST /v1/responses"):
        client_of(engine).responses.create(model="m", input="hello")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(engine: Engine, stream: bool) -> None:
    """What is left behind would take the engine more than ten seconds of its processor."""
    body = json.dumps({"messages": [{"role": "user", "content": LONG}], "max_tokens": 8_000, "stream": stream})
    before = cpu_seconds(engine.pid)
    with socket.create_connection(httpx.URL(url_of(engine)).netloc.decode().split(":")) as leaving:  # type: ignore[arg-type]
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        leaving.sendall(f"{head}{body}".encode())
        wait_until(lambda: cpu_seconds(engine.pid) > before + 0.5, 120)  # it is at work
    left = cpu_seconds(engine.pid)
    assert chat(engine, text="word").status_code == 200
    assert cpu_seconds(engine.pid) < left + 5


def test_it_ends_with_its_parent_even_if_that_is_killed(folder: Weights, home: Path) -> None:
    from tests.slm.test_llamacpp import PARENT

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = PARENT.replace('"llamacpp"', '"transformers"')
    command = [sys.executable, "-c", script, str(folder.path), str(home), "does not wait"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: gone(child), 60)


# Forms, and what keeps it from starting.

SAYS = """
import json, sys
from memory.slm.loading import loaded
from memory.slm.writing import Model, Wish

def says(path, quantization):
    told = {"path": path, "kind": "folder", "home": "", "template": None, "quantization": quantization}
    tokenizer, model = loaded(told)
    pieces = []
    Model(model, tokenizer, 8192).write(Wish(tuple(tokenizer("hello").input_ids), 6, 0.0), pieces.append, lambda: False)
    return {"said": "".join(pieces), "kinds": sorted({type(module).__name__ for module in model.modules()})}
"""
QUANTIZED = SAYS + "print(json.dumps(says(*sys.argv[1:])))"
GIVEN_UP = f"""{SAYS}
from dataclasses import asdict
tokenizer, model = loaded({{"path": sys.argv[1], "kind": "folder", "home": "", "template": None,
                           "quantization": "none"}})
writer, asked = Model(model, tokenizer, 8192), iter([False, False])
wish = Wish(tuple(range(100, 1100)), 1, 0.0)
given_up = writer.write(wish, print, lambda: next(asked, True))
print(json.dumps([asdict(given_up), asdict(writer.write(wish, lambda text: None, lambda: False))]))
"""


def script(text: str, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", text, *words], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(("quantization", "layer"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_weights_are_held_in_eight_or_four_bits(folder: Weights, quantization: str, layer: str) -> None:
    loaded = json.loads(script(QUANTIZED, str(folder.path), quantization))
    assert layer in loaded["kinds"]
    assert loaded["said"]


def test_a_prompt_that_nobody_waits_for_is_read_no_further_than_its_chunk(folder: Weights) -> None:
    given_up, again = json.loads(script(GIVEN_UP, str(folder.path)))
    assert given_up == {"finish_reason": "cancelled", "output_tokens": 0, "cached_tokens": 0}
    assert again["cached_tokens"] == 2 * CHUNK_TOKENS


def test_a_folder_with_a_pickle_is_not_read(folder: Weights, home: Path, tmp_path: Path) -> None:
    for file in folder.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    told = refused(Weights(tmp_path, "folder", None, "bad"), home, backend="transformers")
    assert "is a pickle" in told


def test_nothing_is_printed_among_the_lines_of_a_server(
    tiny_weights: Weights, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bar of the conversion stood between its JSON lines."""
    with running(tiny_weights, tmp_path, backend="transformers") as started:
        assert chat(started).status_code == 200
    assert capfd.readouterr() == ("", "")


def test_what_transformers_says_of_a_folder_is_told(home: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    told = refused(Weights(tmp_path, "folder", None, "bad"), home, backend="transformers")
    assert told.startswith(f"transformers cannot run {tmp_path}: ")
    assert "nonesuch" in told


def test_a_model_without_a_chat_template_completes_and_refuses_to_chat(
    folder: Weights, home: Path, tmp_path: Path
) -> None:
    for file in folder.path.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with running(Weights(tmp_path, "folder", None, "bare"), home, backend="transformers") as started:
        assert started.ready is not None
        assert started.ready.message_tokens is None
        got = chat(started)
        assert got.status_code == 400
        assert got.json()["error"]["message"].startswith("this model has no chat template")
        assert client_of(started).completions.create(model="m", prompt="Once", max_tokens=2).choices


def test_without_the_extra_it_says_what_to_install(
    folder: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError(\"No module named 'transformers'\")")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "pip install 'infold[slm]'" in refused(folder, tmp_path, backend="transformers")


def test_a_port_that_is_taken_is_told(folder: Weights, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EngineError) as told:
        start(Running("transformers", folder, home, port=taken.getsockname()[1]))
    assert "Address already in use" in str(told.value)
