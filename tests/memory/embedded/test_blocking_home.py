"""LLMMemoryManager over embedded servers: by TCP, shared in a process, taken over when its owner dies."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from memory import LLMMemoryManager
from memory.environment import NAMES
from memory.postgres import attach, start
from memory.postgres_home import server_lives
from tests.owners import ENVIRONMENT, PLACE, free_port, wait_until


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*NAMES, *(name for name in os.environ if name.startswith("INFOLD_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_an_embedded_server_on_tcp_with_a_password_is_a_database_like_any_other(place):
    port = free_port()
    server = start(place / "data", tcp_port=port)
    try:
        password = unquote(urlsplit(server.address.dsn).password or "")
        with LLMMemoryManager("127.0.0.1", port, "infold", "infold", password) as made:
            assert made.retrieve_memory_item(made.add_memory_item("over tcp", "note")) is not None
    finally:
        server.stop()


def test_several_in_one_process_share_one_server(place):
    with LLMMemoryManager(data_dir=place / "d") as first, LLMMemoryManager(data_dir=place / "d") as second:
        id = first.add_memory_item("seen by both", "note")
        assert second.retrieve_memory_item(id) is not None
        first.close()
        assert second.retrieve_memory_item(id) is not None
    assert not server_lives(place / "d")


OTHER = """
import sys
from memory import LLMMemoryManager
manager = LLMMemoryManager(data_dir=sys.argv[1], session_id="other")
print(manager.add_memory_item("written by the first process", "note"), flush=True)
sys.stdin.read()
"""


def test_when_the_owner_is_killed_the_other_process_goes_on_with_what_was_written(place):
    data_dir = place / "d"
    owner = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(data_dir)],
        env=ENVIRONMENT, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout
    id = owner.stdout.readline().strip()
    with LLMMemoryManager(data_dir=data_dir) as made:
        pid = attach(data_dir).pid
        owner.kill()
        owner.communicate()
        item = made.retrieve_memory_item(id)  # waits through the change of hands
        assert item is not None
        assert item["full_content"] == "written by the first process"
        wait_until(lambda: (found := attach(data_dir)) is not None and found.pid != pid, 60)
        assert made.add_memory_item("afterwards", "note")
    assert not server_lives(data_dir)
