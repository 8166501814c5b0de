"""Which calls of an answer are the memory's to answer, and how streams and bodies are read for that."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from proxy.errors import UpstreamCut
from proxy.recalling import Said, to_the_end, whole
from proxy.wire.content import message_of


class Coming:
    """A reply whose body comes in pieces; then it is cut, hangs, or ends."""

    def __init__(self, *pieces: bytes, then: Exception | float | None = None) -> None:
        self._pieces = pieces
        self._then = then
        self.is_closed = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            for piece in self._pieces:
                yield piece
            if isinstance(self._then, Exception):
                raise self._then
            await asyncio.sleep(self._then or 0)
        finally:
            self.is_closed = True


def said(names: Sequence[str], *reasons: str) -> Said:
    calls = [{"id": f"call_{n}", "function": {"name": name, "arguments": "{}"}} for n, name in enumerate(names)]
    return Said(message_of(json.dumps({"role": "assistant", "tool_calls": calls}).encode()), reasons)


def test_calls_of_ours_are_those_of_our_tool():
    assert [call.id for call in said(["recall", "read", "recall"], "tool_calls").asks] == ["call_0", "call_2"]
    assert said(["read"], "tool_calls").asks == []
    assert Said(None).asks == ()


@pytest.mark.parametrize("reason", ["length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"])
def test_a_call_that_may_have_broken_off_is_not_answered(reason):
    assert said(["recall"], reason).asks == ()


async def read(reply: Any, told: bytes) -> list[bytes]:
    came: list[bytes] = []
    async for chunk in to_the_end(reply, lambda: told in came):
        came.append(chunk)
    return came


async def test_a_stream_is_read_to_its_end_and_what_hangs_behind_it_is_let_go():
    assert await read(Coming(b"a", b"end", b"\n\n"), b"end") == [b"a", b"end", b"\n\n"]
    hanging = Coming(b"a", b"end", b"\n", then=600)
    assert await asyncio.wait_for(read(hanging, b"end"), 60) == [b"a", b"end", b"\n"]
    assert hanging.is_closed


async def test_before_its_end_a_stream_may_be_silent():
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(read(Coming(b"a", then=600), b"end"), 1.5)


async def test_a_large_body_is_read_in_part_and_a_cut_is_told():
    assert await whole(Coming(b"ab", b"cd", b"ef"), 3) == (b"abcd", None, True)
    assert await whole(Coming(b"ab", b"cd")) == (b"abcd", None, False)
    cut = UpstreamCut("gone")
    assert await whole(Coming(b"ab", then=cut)) == (b"ab", cut, False)
