"""Adapters in engines: loaded while they run, used by name, and gone without a trace."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from memory.settings import Learning, Slm
from memory.slm.adapters import CONFIG, META, WEIGHTS, Adapter, BadAdapter, Foundation, foundation_of, remove
from memory.slm.adapting import RuntimeAdapters, adapting
from memory.slm.convert import converted
from memory.slm.engine import Engine
from memory.slm.known import MOST_LOADED
from memory.slm.naming import adapter_name
from memory.slm.weights import Weights
from tests.slm.engines import running, url_of
from tests.slm.lora import published

HELLO: Any = [{"role": "user", "content": "Tell me about rain."}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def folder(tiny_weights: Weights, place: Path) -> Path:
    """What is trained upon."""
    return converted(tiny_weights.path, place / "models")


@pytest.fixture(scope="module", params=["transformers", "llamacpp"])
def engine(tiny_weights: Weights, place: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with running(tiny_weights, place / "models", backend=request.param, adapters=place / "adapters") as started:
        yield started


@pytest.fixture(scope="module")
def base(folder: Path) -> Foundation:
    return foundation_of(folder)


@pytest.fixture(scope="module")
def adapters(place: Path, base: Foundation) -> list[Adapter]:
    return [published(place, f"t{n}", base, n) for n in range(MOST_LOADED + 2)]


@pytest.fixture
def there(engine: Engine) -> Iterator[RuntimeAdapters]:
    """Of an engine without any, before and after."""
    found = of(engine)
    yield found
    for name in asyncio.run(found.list()):
        asyncio.run(found.unload(name))


def of(engine: Engine, **more: Any) -> Any:
    slm = {"backend": engine.running.backend, "model": engine.name, "url": url_of(engine), "key": engine.key}
    return adapting(Slm(**{**slm, "learning": Learning(enabled=True), **more}))


def name_of(engine: Engine, number: int) -> str:
    return adapter_name(engine.name, number, b"%d" % number)


def post(engine: Engine, path: str, body: object, key: str | None = "") -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key or engine.key}"}
    return httpx.post(f"{url_of(engine)}/{path}", json=body, headers=headers, timeout=120)


def said(engine: Engine, model: str, **more: Any) -> str:
    body = {"model": model, "messages": HELLO, "max_tokens": 10, "temperature": 0, **more}
    answer = post(engine, "chat/completions", body).json()
    assert answer["model"] == model
    text: str = answer["choices"][0]["message"]["content"]
    return text


def load(engine: Engine, name: str, folder: Path) -> httpx.Response:
    return post(engine, "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})


def test_the_bare_model_says_the_same_before_while_and_after_there_is_an_adapter(
    engine: Engine, there: RuntimeAdapters, adapters: list[Adapter]
) -> None:
    bare, one, two = engine.name, name_of(engine, 1), name_of(engine, 2)
    before = said(engine, bare)
    asyncio.run(there.load(one, adapters[0]))
    assert said(engine, bare) == before
    first = said(engine, one)
    assert said(engine, bare) == before
    asyncio.run(there.load(two, adapters[1]))
    assert said(engine, bare) == before
    assert len({before, first, said(engine, two)}) == 3
    assert (said(engine, one), said(engine, bare)) == (first, before)
    asyncio.run(there.unload(one))
    assert said(engine, bare) == before
    asyncio.run(there.unload(two))
    assert (said(engine, bare), asyncio.run(there.list())) == (before, ())


def test_an_adapter_says_the_same_whoever_was_asked_before(
    engine: Engine, there: RuntimeAdapters, adapters: list[Adapter]
) -> None:
    """What the bare model made of the same prompt is not taken over."""
    name, other = name_of(engine, 1), [{"role": "user", "content": "And what of snow?"}]
    asyncio.run(there.load(name, adapters[0]))
    said(engine, engine.name)
    after_the_bare_model = said(engine, name)
    said(engine, name, messages=other)
    assert said(engine, name) == after_the_bare_model


def test_adapters_are_listed_with_their_folder_and_the_model_they_were_made_from(
    engine: Engine, there: RuntimeAdapters, adapters: list[Adapter]
) -> None:
    name = name_of(engine, 1)
    asyncio.run(there.load(name, adapters[0]))
    assert asyncio.run(there.list()) == (name,)
    headers = {"authorization": f"Bearer {engine.key}"}
    bare, adapted = httpx.get(f"{url_of(engine)}/models", headers=headers, timeout=60).json()["data"]
    assert (bare["id"], bare["parent"]) == (engine.name, None)
    assert (adapted["id"], adapted["parent"], adapted["root"]) == (name, engine.name, str(adapters[0].folder))
    assert (there.model_name(None), there.model_name(name)) == (engine.name, name)


def test_without_the_engines_key_there_are_no_adapters(
    engine: Engine, there: RuntimeAdapters, adapters: list[Adapter]
) -> None:
    """A proxy hands on whatever its clients send."""
    name = name_of(engine, 1)
    asyncio.run(there.load(name, adapters[0]))
    for key in (None, "sk-of-a-client"):
        assert post(engine, "unload_lora_adapter", {"lora_name": name}, key).status_code == 404
        assert post(engine, "load_lora_adapter", {"lora_name": name, "lora_path": "/"}, key).status_code == 404
        assert post(engine, "chat/completions", {"model": name, "messages": HELLO}, key).status_code == 404
        assert post(engine, "completions", {"model": name, "prompt": "rain"}, key).status_code == 404
        assert asyncio.run(of(engine, key=key).list()) == ()
    assert asyncio.run(there.list()) == (name,)


def test_an_adapter_that_is_not_there_is_told_in_openais_form(engine: Engine) -> None:
    got = post(engine, "chat/completions", {"model": name_of(engine, 9), "messages": HELLO})
    error = got.json()["error"]
    assert (got.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert post(engine, "unload_lora_adapter", {"lora_name": name_of(engine, 9)}).status_code == 404


def test_more_adapters_than_are_held_at_once_all_answer_as_the_first_time(
    engine: Engine, there: RuntimeAdapters, adapters: list[Adapter]
) -> None:
    names = [name_of(engine, n) for n in range(1, len(adapters) + 1)]
    bare = said(engine, engine.name)
    first = []
    for name, adapter in zip(names, adapters, strict=True):
        asyncio.run(there.load(name, adapter))
        first.append(said(engine, name))
    assert len({bare, *first}) == len(adapters) + 1
    assert [said(engine, name) for name in names] == first
    assert said(engine, engine.name) == bare


def test_an_adapter_whose_folder_has_gone_is_told_and_the_model_goes_on(
    engine: Engine, there: RuntimeAdapters, adapters: list[Adapter], place: Path, base: Foundation
) -> None:
    gone, names = (
        published(place, f"gone-{engine.running.backend}", base, 77),
        [name_of(engine, n) for n in range(1, MOST_LOADED + 2)],
    )
    bare = said(engine, engine.name)
    for name, adapter in zip(names, [gone, *adapters], strict=False):
        asyncio.run(there.load(name, adapter))  # the last one takes the first one's place in memory
    remove(gone.folder)
    got = post(engine, "chat/completions", {"model": names[0], "messages": HELLO})
    assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")
    assert said(engine, engine.name) == bare


def test_one_that_is_loaded_again_gives_way_to_the_new_one(
    engine: Engine, there: RuntimeAdapters, adapters: list[Adapter]
) -> None:
    name, other = name_of(engine, 1), name_of(engine, 2)
    asyncio.run(there.load(name, adapters[0]))
    assert load(engine, name, adapters[1].folder).json()["error"]["message"].endswith("has already been loaded.")
    old = said(engine, name)
    asyncio.run(there.load(name, adapters[1]))
    asyncio.run(there.load(other, adapters[1]))
    assert old != said(engine, name) == said(engine, other)


def test_what_is_unloaded_twice_is_gone(engine: Engine, there: RuntimeAdapters) -> None:
    asyncio.run(there.unload(name_of(engine, 1)))


def hostile(kind: str, folder: Path, place: Path, tmp_path: Path) -> Path:
    """A folder made bad in one way; or the way to one."""
    for file in folder.iterdir():
        file.chmod(0o644)
    if kind == "pickle":
        (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    elif kind == "other base":
        (folder / META).write_text(json.dumps({"base_hash": "f" * 32}))
    elif kind == "link":
        (folder / WEIGHTS).rename(tmp_path / WEIGHTS)
        (folder / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    elif kind == "header":
        (folder / WEIGHTS).write_bytes((10 * 10**9).to_bytes(8, "little") + b"{}")
    elif kind == "not a number":
        tensors = load_file(folder / WEIGHTS)
        save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, folder / WEIGHTS)
    elif kind == "settings":
        (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), "use_dora": True}))
    elif kind == "elsewhere":
        os.rename(folder, tmp_path / "moved")
        return tmp_path / "moved"
    elif kind == "climbing":
        os.rename(folder, tmp_path / "moved")
        return place / "adapters" / ".." / ".." / tmp_path.name / "moved"
    elif kind == "linked folder":
        os.rename(folder, tmp_path / "moved")
        folder.symlink_to(tmp_path / "moved")
    elif kind == "missing":
        return folder.parent / "99"
    else:
        assert kind == "relative"
        return Path("t0")
    return folder


@pytest.mark.parametrize("kind", [
    "pickle", "other base", "link", "header", "not a number", "settings", "elsewhere", "climbing", "linked folder",
    "missing", "relative",
])  # fmt: skip
def test_a_folder_that_must_not_be_loaded_is_refused_and_the_model_answers_as_before(
    engine: Engine, there: RuntimeAdapters, place: Path, base: Foundation, tmp_path: Path, kind: str
) -> None:
    before, name = said(engine, engine.name), name_of(engine, 1)
    adapter = published(place, f"bad-{kind.replace(' ', '-')}-{engine.running.backend}", base, 5)
    got = load(engine, name, hostile(kind, adapter.folder, place, tmp_path))
    error = got.json()["error"]
    assert (got.status_code, error["code"], error["param"]) == (400, "bad_adapter", "lora_path")
    assert asyncio.run(there.list()) == ()
    assert said(engine, engine.name) == before


@pytest.mark.parametrize("name", ["gpt-4o", "", "{base}", "{base}-a1-0123abcz", "../{base}-a1-0123abcd", 7])
def test_an_adapter_has_a_name_that_says_nothing(engine: Engine, adapters: list[Adapter], name: Any) -> None:
    name = name.format(base=engine.name) if isinstance(name, str) else name
    got = post(engine, "load_lora_adapter", {"lora_name": name, "lora_path": str(adapters[0].folder)})
    assert (got.status_code, got.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_client_tells_that_a_folder_is_refused(engine: Engine, adapters: list[Adapter], tmp_path: Path) -> None:
    with pytest.raises(BadAdapter, match="must lie where this engine's adapters do"):
        asyncio.run(of(engine).load(name_of(engine, 1), Adapter(tmp_path, 4, 8.0, (), "none", {})))


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_bases_carry_adapters_and_lose_them_without_a_trace(
    folder: Path, tmp_path: Path, quantization: str
) -> None:
    weights = Weights(folder, "folder", None, "small")
    adapter = published(tmp_path, "t", foundation_of(folder, quantization), 3)
    how = {"backend": "transformers", "quantization": quantization, "adapters": tmp_path / "adapters"}
    with running(weights, tmp_path, **how) as quantized:
        before, name = said(quantized, "small"), name_of(quantized, 1)
        asyncio.run(of(quantized).load(name, adapter))
        changed = said(quantized, name)
        assert (said(quantized, "small"), said(quantized, name)) == (before, changed)
        asyncio.run(of(quantized).unload(name))
        assert said(quantized, "small") == before != changed


@pytest.mark.parametrize("backend", ["transformers", "llamacpp"])
def test_a_real_model_says_what_it_said_while_and_after_it_carries_an_adapter(
    smollm2: Weights, models_home: Path, tmp_path: Path, backend: str
) -> None:
    base = foundation_of(converted(smollm2.path, models_home))
    with running(smollm2, models_home, backend=backend, adapters=tmp_path / "adapters") as real:
        adapter, name = published(tmp_path, "t", base, 1), name_of(real, 1)
        before = said(real, real.name, max_tokens=24)
        assert "rain" in before.lower()
        asyncio.run(of(real).load(name, adapter))
        during, changed = said(real, real.name, max_tokens=24), said(real, name, max_tokens=24)
        asyncio.run(of(real).unload(name))
        assert (during, said(real, real.name, max_tokens=24)) == (before, before)
        assert changed != before
