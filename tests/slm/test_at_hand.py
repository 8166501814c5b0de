"""Programs on a data directory find the engine that a server runs there, and nothing that only looks like one."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from memory.slm.at_hand import FILE, AtHand, at_hand, told
from tests.scripted import ScriptedUpstream, answer

MODELS = json.dumps({"object": "list", "data": [{"id": "small", "object": "model"}]}).encode()


@pytest.fixture
def engine():
    with ScriptedUpstream(answer(MODELS)) as serving:
        yield serving


def of(engine: ScriptedUpstream, **more: Any) -> AtHand:
    return replace(AtHand(f"{engine.url}/v1", "small", "llamacpp", 2_048, "none", os.getpid(), "s3cret"), **more)


def write(folder: Path, content: str, mode: int = 0o600) -> None:
    (folder / FILE).write_text(content)
    (folder / FILE).chmod(mode)


def test_an_engine_is_found_while_its_server_runs(engine, tmp_path):
    home = tmp_path / "data"
    assert at_hand(home) is None
    with told(home, of(engine)):
        assert at_hand(home) == of(engine)
        assert (home / FILE).stat().st_mode & 0o777 == 0o600
        assert "s3cret" not in repr(at_hand(home))
    assert at_hand(home) is None
    assert list(home.iterdir()) == []


def test_a_server_takes_away_no_file_but_its_own(engine, tmp_path):
    with told(tmp_path, of(engine)):
        write(tmp_path, json.dumps(asdict(of(engine, pid=1))))
    assert (tmp_path / FILE).exists()


def test_what_a_killed_server_left_behind_counts_for_nothing(engine, tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    write(tmp_path, json.dumps(asdict(of(engine, pid=ended.pid))))
    assert at_hand(tmp_path) is None
    assert engine.requests == []


@pytest.mark.parametrize("reply", [
    answer(MODELS.replace(b"small", b"other")),
    answer(b"<html>", 200),
    answer(MODELS, 500),
    answer(b""),
    (),
])  # fmt: skip
def test_somebody_else_at_its_address_is_not_taken_for_it(engine, tmp_path, reply):
    engine.script = reply
    with told(tmp_path, of(engine)):
        assert at_hand(tmp_path) is None


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_a_file_that_others_can_read_or_write_is_not_trusted(engine, tmp_path, mode):
    write(tmp_path, json.dumps(asdict(of(engine))), mode)
    assert at_hand(tmp_path) is None
    assert engine.requests == []


def test_a_link_is_not_followed(engine, tmp_path):
    write(tmp_path, json.dumps(asdict(of(engine))))
    (tmp_path / FILE).rename(tmp_path / "other")
    (tmp_path / FILE).symlink_to(tmp_path / "other")
    assert at_hand(tmp_path) is None


@pytest.mark.parametrize("content", [
    "", "[]", "{}", "null", "\x00", "[" * 9_000, '{"url": 1, "model": 2, "backend": 3, "window": "", "pid": 0}',
])  # fmt: skip
def test_a_file_that_cannot_be_read_counts_for_nothing(tmp_path, content):
    write(tmp_path, content)
    assert at_hand(tmp_path) is None


@pytest.mark.parametrize("wrong", [{"pid": 0}, {"pid": -1}, {"pid": "1"}, {"pid": 2**70}, {"window": "x"}, {"url": 7}])
def test_a_number_that_is_none_counts_for_nothing(engine, tmp_path, wrong):
    write(tmp_path, json.dumps(asdict(of(engine)) | wrong))
    assert at_hand(tmp_path) is None
