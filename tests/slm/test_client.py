"""A model at a URL: what it answers comes back, and whatever goes wrong is one kind of error, in time."""

import json
from typing import Any

import pytest

from memory.errors import ModelError
from memory.slm.client import MOST_BYTES, ModelAt
from tests.scripted import End, ScriptedUpstream, answer

HELLO = [{"role": "user", "content": "hello"}]


def reply(content: Any = "hi", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}} | more).encode()


@pytest.fixture
def engine():
    with ScriptedUpstream(answer(reply())) as serving:
        yield serving


def at(engine: ScriptedUpstream, seconds: float = 20.0, key: str | None = None) -> ModelAt:
    return ModelAt(f"{engine.url}/v1/", "small", key, seconds)


async def test_an_answer_comes_back_with_its_tokens(engine):
    engine.script = answer(reply(" hi\n"))
    said = await at(engine, key="sk-1").complete(HELLO, 16, stop=["\n"])
    assert (said.text, said.input_tokens, said.output_tokens, said.finish_reason) == ("hi", 7, 2, "stop")
    (seen,) = engine.requests
    assert (seen.method, seen.target) == ("POST", b"/v1/chat/completions")
    assert json.loads(seen.body) == {
        "model": "small", "messages": HELLO, "max_tokens": 16, "temperature": 0.0, "stop": ["\n"],
    }  # fmt: skip
    assert seen.header(b"authorization") == b"Bearer sk-1"


async def test_half_a_character_reaches_the_engine_as_it_was_written(engine):
    await at(engine).complete([{"role": "user", "content": "a\ud800b"}], 4)
    assert json.loads(engine.requests[0].body)["messages"][0]["content"] == "a\ud800b"


async def test_what_the_engine_does_not_say_is_nothing(engine):
    engine.script = answer(json.dumps({"choices": [{"message": {"content": None}}]}).encode())
    said = await at(engine).complete(HELLO, 4)
    assert (said.text, said.input_tokens, said.output_tokens, said.finish_reason) == ("", 0, 0, "")


@pytest.mark.parametrize(
    "steps",
    [
        answer(b'{"error":{"message":"too long"}}', 400),
        answer(reply(), 500),
        answer(b"", 307, [(b"location", b"http://127.0.0.1:9/")]),
        answer(b"not json"),
        answer(b"\xff\xfe"),
        answer(b"[]"),
        answer(b'{"choices":[]}'),
        answer(b'{"choices":[{"message":{"content":5}}]}'),
        answer(b"[" * 100_000),
        [End.CLOSE],
        [End.RESET],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", End.CLOSE],
        answer(reply("x" * MOST_BYTES)),
    ],
)
async def test_everything_else_is_an_error_of_the_model(engine, steps):
    engine.script = steps
    with pytest.raises(ModelError):
        await at(engine).complete(HELLO, 4)
    assert len(engine.requests) == 1  # and is not tried again


@pytest.mark.parametrize("steps", [[End.HANG], answer([b" "] * 6 + [reply()], framing="chunked", pause=0.2)])
async def test_an_answer_that_takes_too_long_is_given_up_also_while_it_drips(engine, steps):
    engine.script = steps
    with pytest.raises(ModelError, match=r"in 0\.3 s"):
        await at(engine, 0.3).complete(HELLO, 4)


async def test_an_engine_that_is_away_is_an_error_at_once():
    with pytest.raises(ModelError, match="did not answer"):
        await ModelAt("http://127.0.0.1:9/v1", "small").complete(HELLO, 4)


async def test_the_proxies_of_the_environment_are_not_asked(engine, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert (await at(engine).complete(HELLO, 4)).text == "hi"


@pytest.mark.parametrize(
    ("models", "window"),
    [
        ([{"id": "small", "max_model_len": 4_096}, {"id": "b", "max_model_len": 9}], 4_096),
        ([{"id": "/models/small.gguf", "meta": {"n_ctx": 8_192, "n_ctx_train": 32_768}}], 8_192),
        ([{"id": "a", "context_length": 5}, {"id": "b", "context_length": 6}], None),
        ([], None),
    ],
)
async def test_the_window_is_asked_of_the_engine(engine, models, window):
    engine.script = answer(json.dumps({"data": models}).encode())
    model = at(engine)
    assert await model.window() == window
    assert engine.requests[0].target == b"/v1/models"
    await model.window()
    assert len(engine.requests) == (1 if window else 2)  # what was told is known


async def test_an_engine_that_tells_no_models_has_a_window_nobody_knows(engine):
    engine.script = answer(b"", 404)
    assert await at(engine).window() is None
