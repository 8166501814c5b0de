"""`infold serve` as people run it, from conversations to an adapter that answers, and back: processes and HTTP alone.

The rules of the gate are those of everybody. The model computes next to nothing, so it learns in seconds and says
nothing that holds; what an adapter is worth is measured by `benchmarks/slm_learning.py`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file, save_file

from memory.slm.weights import Weights
from tests.proxy.test_household import HEADERS
from tests.slm.small import MARKS, small_model
from tests.slm.talks import talks
from tests.slm.test_local import client_of, serving

Json = dict[str, Any]

TALKS = talks(40)
RECIPE = {"epochs": 0, "max_steps": 12, "learning_rate": 0.01, "replay_share": 0, "row_tokens": 2_000, "patience": 0}
SETTINGS = {
    "INFOLD_SLM__BACKEND": "transformers",
    "INFOLD_SLM__LEARNING__ENABLED": "true",
    "INFOLD_SLM__LEARNING__TRIGGER": "fixed",
    "INFOLD_SLM__LEARNING__CONVERSATIONS": str(len(TALKS)),
    "INFOLD_SLM__LEARNING__CANARY_SHARE": "1",
    "INFOLD_SLM__LEARNING__CANARY_ANSWERS": "1",
    "INFOLD_SLM__LEARNING__RECIPE": json.dumps(RECIPE),
}
QUESTION = "Which number does the invoice have?"
PATIENCE_SECONDS, PAUSE_SECONDS = 400, 0.3  # much is done by the minute


def talkative(folder: Path) -> Weights:
    """A small model that never falls silent, which is the first thing that one of random weights would learn."""
    weights = small_model(folder) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][MARKS.index("<|im_end|>")] *= 0.01
    save_file(tensors, weights, {"format": "pt"})
    return Weights(folder, "folder", None, "small")


class Client:
    """Somebody at a server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def chat(self, messages: list[Json]) -> None:
        with client_of(self.url) as client:
            client.chat.completions.create(model="gpt-4o", messages=messages, max_tokens=2)  # type: ignore[arg-type]

    def ask(self) -> Json:
        return self.manage("POST", "ask", {"question": QUESTION})

    def manage(self, method: str, path: str, body: Json | None = None) -> Json:
        url = f"{self.url}/memory-manager/{path}"
        reply = httpx.request(method, url, json=body, headers=HEADERS, timeout=120)
        told: Json = reply.raise_for_status().json()
        return told

    @property
    def learning(self) -> Json:
        told: Json = self.manage("GET", "learning")["learning"]
        return told

    @property
    def adapter(self) -> tuple[str, bool, int]:
        """State, loaded, questions that it answered."""
        (told,) = self.learning["adapters"]
        return told["state"], told["served"], told["asked"]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.learning
            time.sleep(PAUSE_SECONDS)

    def trained(self) -> bool:
        """Whether a training has ended well; chats are answered meanwhile."""
        self.chat([{"role": "user", "content": "Is somebody there?"}])
        trainings = self.learning["trainings"]
        if trainings and trainings[0]["state"] not in ("queued", "running"):
            assert trainings[0]["state"] == "done", trainings[0]["error"]
            return True
        return False


def rolled_back(dsn: str, folder: Path) -> str:
    """What the command says."""
    environment = os.environ | {"DATABASE_URL": dsn, "INFOLD_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "proxy.cli", "slm", "rollback", "--key", "sk-alice"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch and its kin warn of themselves
def test_a_server_learns_by_itself_from_conversations_answers_with_it_and_goes_back(dsn: str, tmp_path: Path) -> None:
    model = talkative(tmp_path / "small")
    with serving(model, dsn, tmp_path / "data", **SETTINGS) as (_, url, _):
        alice = Client(url)
        alice.manage("PUT", "learning", {"enabled": True})
        for talk in TALKS:
            alice.chat([{"role": said.role, "content": said.text} for said in talk.utterances])
        assert alice.ask()["sources"]  # by the bare model, to compare with

        alice.until(alice.trained)
        (training,) = alice.learning["trainings"]
        assert (training["why"], training["metrics"]["steps"]) == ("conversations", 12)
        alice.until(lambda: alice.adapter == ("canary", True, 0))
        alice.ask()
        assert alice.adapter[1:] == (True, 1)
        alice.until(lambda: alice.adapter == ("active", True, 1))
        alice.ask()
        assert alice.adapter == ("active", True, 2)

    with serving(model, dsn, tmp_path / "data", **SETTINGS) as (_, url, _):  # another engine, which knows no adapter
        alice = Client(url)

        def reads_again() -> bool:
            alice.ask()
            return alice.adapter[2] > 2

        alice.until(reads_again)
        assert rolled_back(dsn, tmp_path / "data") == "The bare model reads now."
        state, _, asked = alice.adapter
        assert state == "retired"
        alice.ask()
        alice.until(lambda: not alice.adapter[1])
        assert alice.adapter == ("retired", False, asked)
