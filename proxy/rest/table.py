"""Every endpoint of `/memory-manager`: the one list that routes and document are made from.

A handler's signature says what comes and goes: `body` is the request's body, `query` its query string, and what it
gives is the reply, or a response of its own.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_type_hints

import msgspec
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from memory.errors import LLMMemoryError
from proxy.errors import ClientGone, ProxyError
from proxy.exchange import Exchange
from proxy.rest import events, items, learning, records, tools, work
from proxy.rest.asking import Asking, asking, refused, reply
from proxy.rest.bodies import Answer, ToolArguments, TurnRead
from proxy.rest.openapi import DEFAULT, WHOLE, Operation, document

JSON = "application/json"
LINES = "application/x-ndjson"

Handler = Callable[..., Awaitable[Answer | Response]]


class Endpoint:
    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler,
        summary: str,
        reply: type | None = None,
        media: str = JSON,
        brings: str = JSON,
        takes: type | None = None,
        unnamed: str = DEFAULT,
    ) -> None:
        hints = get_type_hints(handler)
        given = reply or (None if hints["return"] is Response else hints["return"])
        self.handler = handler
        self.body: type | None = hints.get("body")
        self.operation = Operation(
            method, path, summary, given, takes or hints.get("body"), hints.get("query"), media, brings, unnamed
        )

    async def answer(self, asked: Asking) -> Response:
        given: dict[str, Any] = {}
        if self.operation.query is not None:
            given["query"] = asked.query(self.operation.query)
        if self.body is not None:
            given["body"] = await asked.body(self.body)
        told = await self.handler(asked, **given)
        return told if isinstance(told, Response) else reply(told)


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "items/add", items.add, "Store an item"),
    Endpoint("POST", "items/retrieve", items.retrieve, "An item by its id, counted as read"),
    Endpoint("POST", "items/search", items.search, "Items by meaning and by words, best first"),
    Endpoint("POST", "ask", items.ask, "Answer a question from the memory, with what it rests on", unnamed=WHOLE),
    Endpoint("GET", "items", items.listed, "The session's items, newest first"),
    Endpoint("PATCH", "items/{item_id}", items.change, "Change an item"),
    Endpoint("DELETE", "items/{item_id}", items.delete, "Delete an item"),
    Endpoint("GET", "state", items.state, "What the session's prompt holds"),
    Endpoint("GET", "state/export", items.state_export, "The session as one JSON text"),
    Endpoint("GET", "context", items.context, "The items that belong into a prompt"),
    Endpoint("POST", "hygiene", items.hygiene, "Compress and archive what time has passed by"),
    Endpoint("POST", "tokens/track", items.track, "Count tokens that a program had from a provider"),
    Endpoint("POST", "tasks/create", work.create_task, "Make a task"),
    Endpoint("POST", "tasks/update", work.update_task, "Change a task"),
    Endpoint("GET", "tasks", work.tasks, "The session's tasks, by priority, newest first"),
    Endpoint("POST", "tasks/{task_id}/assign", work.assign, "Give a task to an agent"),
    Endpoint("POST", "agents/create", work.create_agent, "Make an agent known"),
    Endpoint("GET", "agents", work.agents, "The session's active agents"),
    Endpoint("POST", "quarantine", work.isolate, "Hold content where nothing tells it"),
    Endpoint("GET", "quarantine", work.isolated, "What is held or proposed, without its content"),
    Endpoint("GET", "quarantine/{thread_id}", work.read_isolated, "What is held, by its thread; audited"),
    Endpoint("POST", "quarantine/{thread_id}/release", work.release, "Give content back; a person's key is needed"),
    Endpoint("POST", "hil/request", work.ask, "Ask a person"),
    Endpoint("POST", "hil/respond", work.answer, "Answer a question"),
    Endpoint("GET", "hil/pending", work.pending, "Questions without an answer, by priority, oldest first"),
    Endpoint("GET", "sessions", records.sessions, "The tenant's sessions, newest first"),
    Endpoint("GET", "sessions/{session}", records.session, "One session"),
    Endpoint("DELETE", "sessions/{session}", records.delete_session, "Delete what programs stored in a session"),
    Endpoint("GET", "turns", records.turns, "Turns of conversations, newest first"),
    Endpoint("GET", "turns/{turn}", records.turn, "Explain a turn", TurnRead),
    Endpoint("GET", "export", records.export, "Everything of the tenant", media=LINES),
    Endpoint("POST", "import", records.load, "Take in what an export gave; twice changes nothing", brings=LINES),
    Endpoint("POST", "erase", records.erase, "Erase everything of the tenant"),
    Endpoint("GET", "usage", records.usage, "Tokens, bill and what it would have been, in sums"),
    Endpoint("GET", "learning", learning.state, "What may be learnt from, trainings and adapters"),
    Endpoint("PUT", "learning", learning.switch, "Allow a small model to learn from the conversations, or not"),
    Endpoint("POST", "learning/train", learning.train, "Train, once the job worker comes to it"),
    Endpoint("POST", "learning/rollback", learning.roll_back, "Take back the adapter on trial, else the one in use"),
    Endpoint("GET", "tools", tools.listed, "Functions for a model"),
    Endpoint("POST", "tools/{name}", tools.run, "Run one of them", takes=ToolArguments),
    Endpoint("GET", "events", events.stream, "What happens, as server-sent events", media="text/event-stream"),
)


class Door:
    """The endpoints of one path, as an ASGI application."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        parts = scope["app"].state.parts
        endpoint = self._endpoints.get("GET" if exchange.method == "HEAD" else exchange.method)
        if endpoint is None:
            return await wrong_method(exchange.method, self._endpoints)(scope, receive, send)
        try:
            exchange.check()
            answer = await endpoint.answer(asking(parts, exchange, scope["path_params"]))
        except ClientGone:
            return
        except (LLMMemoryError, ProxyError) as error:
            answer = refused(error)
        answer.headers["x-content-type-options"] = "nosniff"
        parts.metrics.rest.labels(endpoint.operation.path, f"{answer.status_code // 100}xx").inc()
        await answer(scope, receive, send)


def wrong_method(method: str, allowed: Mapping[str, Endpoint]) -> Response:
    fault = {
        "message": f"{method} is not for this path; it takes {', '.join(allowed)}",
        "type": "invalid_request_error",
        "param": None,
        "code": "method_not_allowed",
    }
    answer = reply({"error": fault, "detail": fault["message"]}, 405)
    answer.headers["allow"] = ", ".join(allowed)
    return answer


def routes() -> list[Route]:
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.operation.path, {})[endpoint.operation.method] = endpoint
    doors = [Route(f"/memory-manager/{path}", Door(endpoints)) for path, endpoints in paths.items()]
    return [Route("/memory-manager/openapi.json", openapi), *doors]


async def openapi(request: object) -> Response:
    """The same for everybody, so without a key."""
    return Response(described(), media_type="application/json")


@cache
def described() -> bytes:
    return msgspec.json.format(msgspec.json.encode(document(operations())), indent=2)


def operations() -> Sequence[Operation]:
    return [endpoint.operation for endpoint in ENDPOINTS]
