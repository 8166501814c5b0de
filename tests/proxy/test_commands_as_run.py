"""`infold items, search, ...` as people run it: a process with pipes, a terminal, Ctrl-C, a server beside it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.proxy.test_commands import KEY, NOWHERE, surroundings
from tests.proxy.test_household import HEADERS, serving
from tests.scripted import ScriptedUpstream


@pytest.fixture
def alone(dsn: str, tmp_path: Path) -> Mapping[str, str]:
    widths = ("COLUMNS", "LINES")  # of the terminal that the tests run on
    return {name: value for name, value in os.environ.items() if name not in widths} | surroundings(dsn, tmp_path)


@contextlib.contextmanager
def start(words: list[str], environment: Mapping[str, str], **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "proxy.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    with subprocess.Popen(command, env=dict(environment), **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def ran(words: list[str], environment: Mapping[str, str], given: bytes | None = None) -> tuple[int, str, str]:
    with start(words, environment, stdin=subprocess.PIPE) as process:
        said, wrong = process.communicate(given, timeout=240)
        return process.returncode, said.decode(), wrong.decode()


def test_a_pipe_brings_a_text_and_takes_an_export(alone: Mapping[str, str]) -> None:
    code, id, _ = ran(["items", "add"], alone, "Fähre \x1b[31m".encode())
    assert code == 0
    code, listed, _ = ran(["items"], alone)
    assert id.strip() in listed
    assert "Fähre [31m" in listed
    _, lines, wrong = ran(["export"], alone)
    assert wrong == ""
    assert [json.loads(line)["kind"] for line in lines.splitlines()] == ["session", "item"]
    code, counts, _ = ran(["import", "-", "--json"], alone, lines.encode())
    assert (code, json.loads(counts)["counts"]["item"]["present"]) == (0, 1)
    assert [ran(words, alone)[0] for words in (["items", "show", NOWHERE], ["items", "--colour"])] == [3, 2]


def test_a_reader_that_has_seen_enough_is_no_error(alone: Mapping[str, str]) -> None:
    ran(["items", "add"], alone, b"long " * 400_000)
    with start(["export"], alone) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b'{"kin'
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[tuple[int, int]]:
    """Both ends of one: what sits before it, and what a program has."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def seen(ours: int) -> str:
    """What stands on a terminal whose program has ended."""
    os.set_blocking(ours, False)
    return os.read(ours, 65_536).decode()


def test_a_terminal_shows_whole_ids_and_cuts_texts_where_the_line_ends(alone: Mapping[str, str]) -> None:
    id = ran(["items", "add"], alone, b"lantern " * 50)[1].strip()
    with terminal(columns=110) as (ours, theirs):
        command = [sys.executable, "-m", "proxy.cli", "items"]
        subprocess.run(command, env=alone, stdout=theirs, timeout=240, check=True)
        *_, line = seen(ours).splitlines()
    assert line.startswith(id)
    assert line.endswith("…")
    assert 100 < len(line) <= 110


def test_an_import_shows_how_far_it_is_on_a_terminal_alone(alone: Mapping[str, str], tmp_path: Path) -> None:
    ran(["items", "add"], alone, b"lantern")
    ran(["export", str(tmp_path / "memory.jsonl")], alone)
    command = [sys.executable, "-m", "proxy.cli", "import", str(tmp_path / "memory.jsonl"), "--json"]
    with terminal() as (ours, theirs):
        run = subprocess.run(command, env=alone, stdout=subprocess.PIPE, stderr=theirs, timeout=240, check=True)
        assert "import " in seen(ours)
    assert json.loads(run.stdout)["success"]


@pytest.mark.parametrize("words", [["items", "add"], ["import", "-"]], ids=" ".join)
def test_ctrl_c_ends_it_without_a_word(alone: Mapping[str, str], words: list[str]) -> None:
    with terminal() as (_, theirs), start(words, alone, stdin=theirs) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"Standard input is read; Ctrl-D ends it.\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""


def test_the_server_and_the_command_line_share_a_data_directory(tmp_path: Path) -> None:
    """By REST while it runs; by the command line while it runs, and after it stopped."""
    alone = os.environ | {"INFOLD_DATA_DIR": str(tmp_path), "INFOLD_EMBEDDER": "none", "DATABASE_URL": ""}
    with ScriptedUpstream() as upstream, serving(upstream.url, "", tmp_path) as (process, url):
        body = {"content": "The lantern burns blue.", "content_type": "note"}
        reply = httpx.post(f"{url}/memory-manager/items/add", json=body, headers=HEADERS, timeout=240)
        id = reply.raise_for_status().json()["item_id"]
        search = ["search", "lantern", "--key", KEY, "--json"]
        while_it_runs = json.loads(ran(search, alone)[1])
        assert [item["id"] for item in while_it_runs["results"]] == [id]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert json.loads(ran(search, alone)[1]) == while_it_runs
    assert ran(["search", "lantern"], alone)[1] == "Nothing found.\n"
    elsewhere = alone | {"INFOLD_DATA_DIR": str(tmp_path / "elsewhere")}
    exported = ran(["export", "--key", KEY], alone)[1]
    assert ran(["import", "-"], elsewhere, exported.encode())[0] == 0
    session = while_it_runs["results"][0]["session_id"]
    code, shown, _ = ran(["items", "--session", session, "--json"], elsewhere)
    assert (code, json.loads(shown)) == (0, json.loads(ran(["items", "--key", KEY, "--json"], alone)[1]))
