"""Speed is measured at a URL, from what the model says it read and wrote."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from memory.errors import ModelError
from memory.slm.speed import ANSWER_TOKENS, PROMPT, STORY, speed


@contextmanager
def answering(reply: object, status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_prompt_is_read_and_an_answer_written_after_a_token_that_warms_up() -> None:
    with answering({"usage": {"prompt_tokens": 300, "completion_tokens": 40}}) as (url, asked):
        found = speed(url, "tiny")
    assert found.reads > found.writes > 0
    assert [path for path, _ in asked] == ["/v1/completions"] * 3
    assert [(body["prompt"], body["max_tokens"]) for _, body in asked[1:]] == [(PROMPT, 1), (STORY, ANSWER_TOKENS)]
    assert all(body["model"] == "tiny" and body["temperature"] == 0 for _, body in asked)


@pytest.mark.parametrize(
    ("reply", "status"),
    [({"error": {"message": "no"}}, 500), ({"choices": []}, 200), ([], 200), ({"usage": {"prompt_tokens": None}}, 200)],
    ids=["an error", "no usage", "no object", "no numbers"],
)
def test_an_answer_without_numbers_is_told(reply: object, status: int) -> None:
    with answering(reply, status) as (url, _), pytest.raises(ModelError, match=r"did not complete a prompt"):
        speed(url, "tiny")


def test_a_model_that_is_away_is_told() -> None:
    with answering({}) as (url, _):
        pass
    with pytest.raises(ModelError, match="ConnectError"):
        speed(url, "tiny")
