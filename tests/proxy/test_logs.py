"""What a log line shows: what happened and where, never words, keys, or the values that were at hand."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from proxy.config import Config, child_environment
from proxy.logs import as_json, as_text
from tests.conversations import body_of, chat, user
from tests.proxied import MODELS
from tests.scripted import ask

Json = dict[str, Any]
CHAT = b"/v1/chat/completions"
KEY = (b"Authorization", b"Bearer sk-alice")


WEB = """
import socket, sys, uvicorn
from proxy.app import App
from tests.proxied import PATIENT

config = uvicorn.Config(App(waits=PATIENT), loop="uvloop", http="proxy.tunnel:Connections", ws="none", lifespan="on",
                        access_log=False, log_config=None)
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


@contextlib.contextmanager
def web_process(upstream: str, dsn: str, folder: Path, log: Path, level: str) -> Iterator[str]:
    """A web worker as `infold serve` starts it, but for its patience; its log lines go to a file."""
    config = Config(upstream=f"{upstream}/v1", data_dir=folder, log_level=level, models=MODELS)
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-c", WEB, str(listener.fileno())],
            env=child_environment(config, dsn, folder / "embed.sock") | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[listener.fileno()],
            stderr=lines,
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


async def test_a_request_is_one_line_without_words_or_keys(dsn, upstream, tmp_path):
    log = tmp_path / "log"
    key = (b"Authorization", b"Bearer sk-s3cret-key")
    with web_process(upstream.url, dsn, tmp_path, log, "debug") as url:
        for messages in ([user("my s3cret words")], [*chat(random.Random(1), 20, 180)[:-1], user("more s3cret words")]):
            got = await ask(url, "POST", CHAT, [key], body_of(messages, max_tokens=256))
            assert got.status == 200
        await ask(url, "POST", CHAT, [key, key], b"{broken s3cret")
        await ask(url, "GET", b"/v1/models?key=s3cret", [key])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    turns = [line for line in lines if line["event"] == "turn"]

    assert [turn["mode"] for turn in turns] == ["wire", "folded", "wire"]
    assert {"turn", "model", "mode", "status", "asked_tokens", "forwarded_tokens", "timestamp"} <= set(turns[0])
    assert "s3cret" not in log.read_text()


@pytest.mark.parametrize("processors", [as_text, as_json])
def test_a_traceback_shows_no_variables(processors):
    try:
        body = "s3cret" + " words"
        raise ZeroDivisionError(len(body))
    except ZeroDivisionError:
        event: structlog.typing.EventDict = {"event": "going on", "level": "error", "exc_info": sys.exc_info()}
    line: object = event
    for processor in processors():
        line = processor(None, "error", line)  # type: ignore[arg-type]

    assert "ZeroDivisionError" in str(line)
    assert "s3cret words" not in str(line)
