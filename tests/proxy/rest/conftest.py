"""A caller of `/memory-manager` for the tests of this folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.clock import Hands
from tests.proxied import Provider, Proxy, proxying


@dataclass(frozen=True)
class Caller:
    """A program with a key and, where it names one, a session."""

    url: str
    key: str | None = "sk-alice"
    session: str | None = None

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        if self.session:
            headers["x-session-id"] = self.session
        if body is not None:
            options["json"] = body
        return httpx.request(method, f"{self.url}/memory-manager/{path}", headers=headers, timeout=60, **options)

    def get(self, path: str, **query: Any) -> Any:
        return told(self.ask("GET", path, params=query))

    def post(self, path: str, **body: Any) -> Any:
        return told(self.ask("POST", path, body))

    def add(self, content: str, content_type: str = "note", **more: Any) -> str:
        return self.post("items/add", content=content, content_type=content_type, **more)["item_id"]  # type: ignore[no-any-return]


def told(reply: httpx.Response) -> Any:
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["success"] is True
    return answer


def refused(reply: httpx.Response, status: int, param: str | None = ...) -> str:  # type: ignore[assignment]
    """The refusal's sentence; its shape is always the same."""
    assert reply.status_code == status, reply.text
    answer = reply.json()
    assert answer.keys() == {"error", "detail"}
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["detail"] == answer["error"]["message"]
    if param is not ...:
        assert answer["error"]["param"] == param
    return answer["detail"]  # type: ignore[no-any-return]


@pytest.fixture
def alice(house: tuple[Proxy, Provider]) -> Caller:
    return Caller(house[0].url)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def timed(dsn: str, tmp_path: Any, hands: Hands) -> Iterator[Caller]:
    """A caller of a server whose clock the test moves."""
    with Provider().serving() as upstream, proxying(upstream.url, dsn, tmp_path, hands) as proxy:
        yield Caller(proxy.url)
