"""The recorder sees what passes, and passes it as it came; the comparison sees what was changed."""

import asyncio

import pytest

from tests.clients.recorder import Answer, Exchange, Recorder, by_name
from tests.clients.running import Route, differences, not_the_scenario, touched
from tests.clients.scenarios import Dialect, Scenario
from tests.scripted import End, ScriptedUpstream, Seen, Steps, answer, ask, connected, cut, sse

CHAT = b"/v1/chat/completions"
DIALECT = Dialect("chat", "Chat Completions", "/chat/completions", {})
WIRE = (b"x-infold-mode", b"wire")


async def recorded(steps: object, request: bytes = b'{"a": 1}', headers: object = ()) -> Route:
    """One request through two recorders, with nothing between them."""
    with ScriptedUpstream(steps) as upstream, Recorder(upstream.url) as back, Recorder(back.url) as front:  # type: ignore[arg-type]
        await ask(front.url, "POST", CHAT, headers, request)  # type: ignore[arg-type]
        return Route(None, front.take(), back.take())


async def test_what_passes_is_kept_on_both_sides() -> None:
    route = await recorded(answer(b"[1]", headers=[WIRE]), headers=[(b"X-A", b"1"), (b"x-a", b"2")])
    (one,) = route.beside_client

    assert (one.request.method, one.request.target, one.request.body) == ("POST", CHAT, b'{"a": 1}')
    assert by_name(one.request.headers)[b"x-a"] == [b"1", b"2"]
    assert (one.answer.status, one.answer.body, one.answer.complete) == (200, b"[1]", True)
    assert touched(route, DIALECT) == []


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
async def test_a_cut_is_passed_on_and_seen(end: End) -> None:
    steps = sse([b"data: 1\n\n", b"data: 2\n\n"], headers=[WIRE])
    whole = sum(len(step) for step in steps if isinstance(step, bytes))
    (one,) = (await recorded([*cut(steps, whole - 9)[:-1], 0.1, end])).beside_client

    assert not one.answer.complete
    assert not one.answer.abandoned
    assert one.answer.body.startswith(b"data: 1\n\ndata: 2")


async def test_a_client_that_hangs_up_is_told_from_a_cut() -> None:
    slow = [*sse([b"data: 1\n\n"])[:2], End.HANG]
    with ScriptedUpstream(slow) as upstream, Recorder(upstream.url) as recorder:
        async with connected(recorder.url) as client:
            await client.send(b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
            await client.head()
        (one,) = recorder.take()

    assert one.answer.abandoned


@pytest.mark.parametrize(
    ("complete", "abandoned", "seen"), [(False, False, True), (False, True, False), (True, False, False)]
)
def test_a_provider_that_goes_on_for_nobody_is_seen(complete: bool, abandoned: bool, seen: bool) -> None:
    request = Seen(b"", "POST", CHAT, (), b"", 0)
    here = Exchange(request, Answer(200, (WIRE,), b"data", complete=False, abandoned=True))
    there = Exchange(request, Answer(200, (WIRE,), b"data: 1", complete, abandoned))
    found = touched(Route(None, [here], [there]), DIALECT)

    assert found == (["answer 0: the client left, and the provider goes on"] if seen else [])


@pytest.mark.parametrize(
    ("managed", "method", "target", "is_managed"),
    [
        ("/messages", "POST", b"/v1/messages?beta=true", True),
        ("/messages", "POST", b"/v1/messages/count_tokens", False),
        ("/responses", "GET", b"/v1/responses", False),
        (None, "POST", b"/v1/responses", False),
    ],
)
def test_a_dialect_knows_what_is_managed(managed: str | None, method: str, target: bytes, is_managed: bool) -> None:
    assert Dialect("x", "X", managed, {}).manages(Seen(b"", method, target, (), b"", 0)) is is_managed


async def test_requests_on_one_connection_are_told_apart() -> None:
    script: list[Steps] = [answer(b"first"), answer([b"se", b"cond"], framing="chunked")]
    with (
        ScriptedUpstream(script) as upstream,
        Recorder(upstream.url) as recorder,
    ):
        async with connected(recorder.url) as client:
            for _ in range(2):
                await client.send(b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n")
                await client.answer()
        taken = recorder.take()

    assert [one.answer.body for one in taken] == [b"first", b"second"]
    assert recorder.take() == []


@pytest.mark.parametrize(("at_once", "beside"), [(True, [0, 1]), (False, [0, 0])])
async def test_requests_that_wait_beside_each_other_are_counted(at_once: bool, beside: list[int]) -> None:
    with ScriptedUpstream([0.3, *answer(b"[1]")]) as upstream, Recorder(upstream.url) as recorder:
        asking = [ask(recorder.url), ask(recorder.url)]
        if at_once:
            await asyncio.gather(*asking)
        else:
            for one in asking:
                await one
        taken = recorder.take()

    assert [exchange.beside for exchange in taken] == beside


@pytest.mark.parametrize(("at_once", "found"), [(1, []), (2, []), (3, ["asked 2 at once, not 3"])])
def test_a_client_that_asks_one_after_another_does_not_ask_at_once(at_once: int, found: list[str]) -> None:
    request = Seen(b"", "POST", CHAT, (), b"", 0)
    passed = [Exchange(request, Answer(200, (), b"", complete=True), beside) for beside in (0, 1, 1)]
    scenario = Scenario("x", "x", lambda asked: [], at_once=at_once)

    assert not_the_scenario(scenario, Route(None, passed, passed)) == found
    assert len(differences(scenario, Route(None, passed, passed), Route(None, passed, passed))) == len(found)


@pytest.mark.parametrize("abandoned", [True, False])
def test_a_client_that_only_stops_reading_does_not_leave(abandoned: bool) -> None:
    request = Seen(b"", "POST", CHAT, (), b"", 0)
    passed = [Exchange(request, Answer(200, (), b"data", complete=False, abandoned=abandoned))]
    scenario = Scenario("x", "x", lambda asked: [], leaves=True)

    assert not_the_scenario(scenario, Route(None, passed, passed)) == ([] if abandoned else ["did not hang up"])


@pytest.mark.parametrize(
    ("client", "provider", "told"),
    [
        ({}, {}, []),
        ({"request": b'{"a":1}'}, {}, ["request 0: body"]),
        ({"headers": [(b"X-A", b"2"), (b"X-A", b"1")]}, {"headers": [(b"X-A", b"1"), (b"X-A", b"2")]}, ["request 0: headers"]),
        ({"headers": [(b"X-A", b"1")]}, {"headers": [(b"x-a", b"1"), (b"Connection", b"close")]}, []),
        ({"steps": answer(b"[2]", headers=[WIRE])}, {}, ["answer 0: body"]),
        ({"steps": answer(b"[1]", 201, headers=[WIRE])}, {}, ["answer 0: status"]),
        ({"steps": answer(b"[1]", headers=[WIRE, (b"date", b"now")])}, {}, ["answer 0: headers"]),
        ({"steps": cut(answer([b"[1]"], headers=[WIRE], framing="chunked"), 80)}, {"steps": answer([b"[1]"], headers=[WIRE], framing="chunked")}, ["answer 0: complete"]),
        ({"steps": answer(b"[1]", headers=[])}, {}, ["answer 0: not a managed wire"]),
    ],
)  # fmt: skip
async def test_each_difference_is_seen(client: dict[str, object], provider: dict[str, object], told: list[str]) -> None:
    usual = {"steps": answer(b"[1]", headers=[WIRE])}
    here = (await recorded(**(usual | client))).beside_client  # type: ignore[arg-type]
    there = (await recorded(**(usual | provider))).beside_client  # type: ignore[arg-type]
    found = touched(Route(None, here, there), DIALECT)

    assert [what[: len(start)] for what, start in zip(found, told, strict=True)] == told
