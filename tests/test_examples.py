"""The examples in docs/ run as they are written."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from memory.environment import NAMES
from memory.postgres import start
from tests.owners import PLACE, free_port

TOP = Path(__file__).parent.parent


def run(program: list[str], folder: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("INFOLD_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", *program],
        cwd=folder, env=clean | {"PYTHONPATH": str(TOP), **environment}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_long_example_runs_against_a_server_on_tcp_with_a_password():
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        os.chmod(folder, 0o711)
        port = free_port()
        example = Path(folder) / "example.py"
        example.write_text((TOP / "docs" / "example.py").read_text().replace('"db_port": 15432', f'"db_port": {port}'))
        server = start(Path(folder) / "data", tcp_port=port)
        try:
            password = unquote(urlsplit(server.address.dsn).password or "")
            told = run([str(example)], folder, DB_PASSWORD=password)
        finally:
            server.stop()
    assert re.findall(r"^(\d)\. ", told, re.MULTILINE) == list("12345678")
    assert "export: 19 items, 3 tasks, 2 agents, 1 in quarantine" in told


@pytest.mark.parametrize("page", ["docs/python.md", "README.md"])
def test_the_short_example_runs_with_the_server_inside(page):
    code = re.findall(r"^```python\n(.*?)^```$", (TOP / page).read_text(), re.MULTILINE | re.DOTALL)[-1]
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        os.chmod(folder, 0o711)
        assert run(["-c", code], folder, INFOLD_DATA_DIR=f"{folder}/data") == "The ferry leaves at 07:40 from pier 9.\n"
