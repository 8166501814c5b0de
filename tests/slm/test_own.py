"""`memory_approach="slm"`: a program's local model is started when it is asked, and ends with the program."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memory import LLMMemoryManager
from memory.environment import NAMES
from memory.errors import EngineError, InvalidRequest, ModelError
from memory.settings import Slm
from memory.slm.own import OwnModel
from memory.slm.weights import MissingWeights, Weights
from tests.owners import gone, wait_until
from tests.slm.test_local import engine_of, serving
from tests.test_base_install import without_engines

HELLO = [{"role": "user", "content": "hello"}]
FACT = "The spare pump of the Håkøya ferry is kept in locker 14."


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No `.env`, no variables of ours."""
    for name in [*NAMES, *(name for name in os.environ if name.startswith("INFOLD_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own(tiny_weights: Weights, tmp_path: Path) -> Iterator[OwnModel]:
    model = OwnModel(Slm(model=str(tiny_weights.path)), tmp_path / "data")
    yield model
    model.close()


async def asked(model: OwnModel) -> str:
    return (await model.complete(HELLO, 4)).text


async def test_nothing_is_started_until_it_is_asked_and_everything_ends_with_it(own: OwnModel) -> None:
    assert own.pid is None
    await asyncio.gather(asked(own), asked(own), own.window())
    pid = own.pid
    assert pid is not None
    await asked(own)
    assert own.pid == pid
    own.close()
    wait_until(lambda: gone(pid), 30)
    with pytest.raises(ModelError, match="has been closed"):
        await asked(own)


async def test_an_engine_that_died_is_started_again_for_the_next_question(own: OwnModel) -> None:
    await asked(own)
    pid = own.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: own.pid is None, 30)
    await asked(own)
    assert own.pid not in (None, pid)


async def test_closing_does_not_wait_for_an_engine_that_is_still_loading(
    tiny_weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "xllamacpp.py").write_text(f"open({str(begun)!r}, 'w').close()\nimport time; time.sleep(600)")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = OwnModel(Slm(model=str(tiny_weights.path)), tmp_path / "data")
    asking = asyncio.create_task(asked(model))
    await asyncio.to_thread(wait_until, begun.exists, 60)
    await asyncio.to_thread(model.close)
    with pytest.raises(ModelError, match="has been closed"):
        await asking


async def test_an_engine_that_does_not_start_is_not_tried_with_each_question(tmp_path: Path) -> None:
    """A file whose header is right and whose weights are not."""
    from tests.slm.making import gguf

    file = tmp_path / "broken.gguf"
    file.write_bytes(gguf())
    model = OwnModel(Slm(backend="llamacpp", model=str(file)), tmp_path / "data")
    with pytest.raises(EngineError) as first:
        await asked(model)
    file.unlink()  # another try would tell that
    with pytest.raises(EngineError) as second:
        await asked(model)
    assert str(second.value) == str(first.value)
    assert model.pid is None


@pytest.mark.parametrize(("model", "kind", "words"), [
    ("smolm2", InvalidRequest, ["did you mean smollm2", "phi-2", "mistral-7b-instruct-v0.3"]),
    ("/nowhere/x.gguf", InvalidRequest, ["/nowhere/x.gguf", "gemma-3-4b-it"]),
    ("smollm2", MissingWeights, ["infold slm fetch smollm2-135m-instruct", "models/smollm2-135m-instruct"]),
    ("phi-2", MissingWeights, ["models/phi-2"]),
])  # fmt: skip
def test_what_is_missing_is_told_before_anything_starts(
    tmp_path: Path, model: str, kind: Any, words: list[str]
) -> None:
    with pytest.raises(kind) as told:
        LLMMemoryManager(memory_approach="slm", use_slm=True, slm_model_name=model, data_dir=tmp_path / "data")
    assert all(word in str(told.value) for word in words)
    assert not (tmp_path / "data").exists()


NO_ENGINES = """
from memory.settings import Slm
from memory.slm.own import backend_of
for backend in ("none", "llamacpp", "transformers"):
    try:
        backend_of(Slm(backend=backend))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_without_an_extra_it_says_what_to_install() -> None:
    lines = without_engines(NO_ENGINES).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["EngineError"] * 3
    assert ["infold[slm-cpu]" in line for line in lines] == [True, True, False]
    assert "infold[slm]" in lines[2]


@pytest.fixture
def around(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)


def test_a_program_asks_its_own_model_and_ends_it(
    around: None, smollm2: Weights, models_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_MODEL_NAME", "smollm2")
    monkeypatch.setenv("MEMORY_APPROACH", "slm")
    with LLMMemoryManager(data_dir=models_home.parent) as memory:
        memory.add_memory_item(FACT, "note")
        assert memory._own is not None
        assert memory._own.pid is None
        answer = memory.ask("Where is the spare pump of the ferry kept?")
        assert (answer["by"], "14" in answer["answer"]) == ("model", True)
        engine = memory._own.pid
        assert engine is not None
        text = f"{FACT} Mara signed for it on 3 May. Nobody else has a key. " * 9
        assert len(memory.compress_content(text, "note")) < len(text)  # by the digest: nobody admitted the model
    wait_until(lambda: gone(engine), 30)


def test_a_server_is_found_by_programs_and_by_the_command_line(
    around: None, tiny_weights: Weights, dsn: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with serving(tiny_weights, dsn, data, "http://127.0.0.1:9/v1", USE_SLM="true") as (server, _, _):
        engine = engine_of(server)
        with LLMMemoryManager(memory_approach="slm", use_slm=True, data_dir=data, tenant_key="k") as memory:
            memory.add_memory_item(FACT, "note")
            assert memory._own is not None
            answer = memory.ask("Where is the spare pump of the ferry kept?")
            assert (answer["by"], answer["reason"]) == ("passages", "not_supported")  # it was asked, and talks noise
            assert memory._own.pid is None
        command = [sys.executable, "-m", "proxy.cli", "ask", "Where is the spare pump?", "--key", "k", "--json"]
        environment = os.environ | {"INFOLD_DATA_DIR": str(data), "INFOLD_EMBEDDER": "none"}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert '"not_supported"' in ran.stdout
        assert engine_of(server) == engine
    assert not (data / "engine.json").exists()


@pytest.mark.parametrize("variables", [{"USE_SLM": "true"}, {"MEMORY_APPROACH": "slm"}])
def test_a_server_that_is_to_use_a_local_model_and_cannot_does_not_start(
    dsn: str, tmp_path: Path, variables: dict[str, str]
) -> None:
    given = {"DATABASE_URL": dsn, "INFOLD_DATA_DIR": str(tmp_path / "data"), "INFOLD_EMBEDDER": "none"}
    command = [sys.executable, "-m", "proxy.cli", "serve", "--port", "0"]
    ran = subprocess.run(
        command,
        env=os.environ | given | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 2
    assert "infold slm fetch" in ran.stderr
