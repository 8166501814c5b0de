"""Adapters of engines that are not ours, by what they answer; those that take none say what would."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from memory.errors import ModelError
from memory.settings import Slm
from memory.slm.adapters import Adapter, BadAdapter
from memory.slm.adapting import Adapting, RuntimeAdapters, Unsupported, adapting, base_name
from tests.scripted import ScriptedUpstream, answer

NAME = "phi-2-a1-0123abcd"
ADAPTER = Adapter(Path("/adapters/t1/b/1"), 8, 16.0, ("q",), "none", {})


@pytest.fixture
def engine():
    with ScriptedUpstream(answer(b"Success")) as serving:
        yield serving


def at(engine: ScriptedUpstream, **more: Any) -> Adapting:
    return adapting(Slm(**{"backend": "openai", "url": f"{engine.url}/v1/", "model": "phi-2", "key": "sk-1", **more}))


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


async def test_vllm_is_asked_in_its_own_words(engine):
    await at(engine).load(NAME, ADAPTER)
    await at(engine).unload(NAME)
    load, unload = engine.requests
    assert [seen.target for seen in engine.requests] == [b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter"]
    assert json.loads(load.body) == {"lora_name": NAME, "lora_path": "/adapters/t1/b/1"}
    assert json.loads(unload.body) == {"lora_name": NAME}
    assert load.header(b"authorization") == unload.header(b"authorization") == b"Bearer sk-1"


async def test_adapters_are_what_was_made_from_a_model(engine):
    models = [{"id": "phi-2", "root": "microsoft/phi-2", "parent": None}, {"id": NAME, "root": "/a", "parent": "phi-2"}]
    engine.script = answer(json.dumps({"object": "list", "data": models}).encode())
    assert await at(engine).list() == (NAME,)


@pytest.mark.parametrize(("status", "body"), [
    (404, b'{"detail":"Not Found"}'),  # vLLM without the variable
    (404, b"404 page not found"),  # Ollama
    (404, error("File Not Found", code=404)),  # llama-server
    (405, b""),
    (400, error("LoRA is not enabled. Use `--enable-lora` to enable LoRA.")),
])  # fmt: skip
async def test_an_engine_that_loads_none_says_what_would(engine, status, body):
    engine.script = answer(body, status)
    with pytest.raises(Unsupported) as told:
        await at(engine).load(NAME, ADAPTER)
    assert "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, at an address that nobody else" in str(told.value)


@pytest.mark.parametrize(("status", "body"), [
    (404, error("No adapter found for /adapters/t1/b/1")),
    (400, error("LoRA rank 64 is greater than max_lora_rank 16.")),
    (400, b'{"object":"error","message":"LoRA rank 64 is greater than max_lora_rank 16."}'),
])  # fmt: skip
async def test_an_adapter_that_vllm_does_not_take_is_told_with_its_words(engine, status, body):
    engine.script = answer(body, status)
    with pytest.raises(BadAdapter, match=r"No adapter found|max_lora_rank"):
        await at(engine).load(NAME, ADAPTER)


@pytest.mark.parametrize(("status", "words"), [(401, "INFOLD_SLM_KEY"), (403, "INFOLD_SLM_KEY"), (500, "status 500")])
async def test_what_else_goes_wrong_is_one_kind_of_error(engine, status, words):
    engine.script = answer(error("secret"), status)
    for call in (at(engine).load(NAME, ADAPTER), at(engine).unload(NAME), at(engine).list()):
        with pytest.raises(ModelError) as told:
            await call
        assert words in str(told.value) or "status" in str(told.value)
        assert "secret" not in str(told.value)


async def test_what_is_not_known_is_unloaded(engine):
    engine.script = answer(error("The lora adapter 'x' cannot be found."), 404)
    await at(engine).unload(NAME)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data":[{"id":1}]}', b"\xff", b"[" * 5_000])
async def test_a_list_that_is_none_is_told(engine, body):
    engine.script = answer(body)
    with pytest.raises(ModelError):
        await at(engine).list()


async def test_an_engine_that_does_not_answer_is_waited_for_no_longer_than_was_said(engine):
    engine.script = ()
    with pytest.raises(ModelError):
        await RuntimeAdapters(f"{engine.url}/v1", "phi-2", seconds=0.2).load(NAME, ADAPTER)


@pytest.mark.parametrize(("slm", "words"), [
    (Slm(), "no local model runs here"),
    (Slm(backend="llamacpp"), "no local model runs here"),
    (Slm(backend="llamacpp", url="http://127.0.0.1:1/v1"), "where slm.learning is enabled"),
])  # fmt: skip
def test_where_no_adapter_can_be_there_are_none(slm: Slm, words: str) -> None:
    there = adapting(slm)
    assert asyncio.run(there.list()) == ()
    asyncio.run(there.unload(NAME))
    with pytest.raises(Unsupported, match=words):
        asyncio.run(there.load(NAME, ADAPTER))
    assert there.model_name(NAME) == there.model_name(None)


@pytest.mark.parametrize(("slm", "name"), [
    (Slm(), "smollm2-135m-instruct"),
    (Slm(backend="openai", model="microsoft/phi-2"), "microsoft/phi-2"),
    (Slm(backend="transformers", model="/models/Mine", name="mine"), "mine"),
])  # fmt: skip
def test_the_bare_model_is_called_as_its_engine_does(slm: Slm, name: str) -> None:
    assert base_name(slm) == name
