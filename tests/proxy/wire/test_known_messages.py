"""What was seen in an earlier request is not read again, and nothing differs by it."""

import json
import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.wire.openai import SHAPE
from proxy.wire.parser import Parser
from tests.bodies import USER, body_of

promise = settings(deadline=None, max_examples=60)

# What is known from earlier requests


def conversation(rng: random.Random, length: int) -> list[bytes]:
    """Messages that resemble each other, some of them equal."""
    words = ["yes", "no", "go on", "x" * 50, 'quote " and \\ and ]}', "é"]
    roles = ["user", "assistant", "tool"]
    return [
        json.dumps({"role": rng.choice(roles), "content": rng.choice(words), "n": rng.randrange(3)}).encode()
        for _ in range(length)
    ]


@pytest.mark.parametrize("cache_bytes", [48_000_000, 6_000, 2_000, 0])
def test_a_parser_that_knows_messages_reads_what_a_new_one_reads(cache_bytes):
    """Growing, forked, edited and mixed conversations, with a cache of every size."""
    rng = random.Random(5)
    parser = Parser(SHAPE, cache_bytes)
    lines = [conversation(rng, 12) for _ in range(4)]
    for _ in range(300):
        line = rng.choice(lines)
        if rng.random() < 0.2:
            line[rng.randrange(len(line))] = conversation(rng, 1)[0]
        spacing = rng.choice([b",", b", ", b" ,\n"])
        body = (
            b'{"model":"m","messages":['
            + spacing.join(line[: rng.randrange(1, 13)])
            + rng.choice([b"]}", b' ],"tools":[]}'])
        )

        assert [m.raw for m in parser.parse(body).messages] == [m.raw for m in Parser(SHAPE).parse(body).messages]


@promise
@given(data=st.data())
def test_a_broken_copy_of_a_known_body_is_judged_as_if_it_were_new(data):
    rng = random.Random(3)
    body = body_of(*conversation(rng, 5), after=b',"tools":[{"x":"]"}]')
    parser = Parser(SHAPE)
    parser.parse(body)
    at = data.draw(st.integers(0, len(body)))
    until = data.draw(st.integers(at, min(len(body), at + data.draw(st.sampled_from([0, 1, 3, 60])))))
    put = data.draw(
        st.sampled_from([b"", b",", b'"', b"]", b"}", b"{", b"[", b"\\", b" ", b"0", b"\xff", USER, b"," + USER])
    )
    broken = body[:at] + put + body[until:]
    warm, cold = parser.parse(broken), Parser(SHAPE).parse(broken)

    assert warm == cold
    if warm is not None:
        assert [m.raw for m in warm.messages] == [m.raw for m in cold.messages]
        assert [json.loads(m.raw) for m in warm.messages] == json.loads(broken)["messages"]
        assert warm.span == cold.span


@example(text=b'{"messages":[{"role":"user"}],"messages":0}')
@promise
@given(
    text=st.lists(st.sampled_from([b'"messages":', b"[", b"]", b"{", b"}", USER, b",", b'"a":', b"1", b'"', b" "])).map(
        b"".join
    )
)
def test_what_is_understood_is_json(text):
    for body in (text, b'{"messages":[' + USER + text, b"{" + text + b"}"):
        request = Parser(SHAPE).parse(body)
        if request is not None:
            assert [json.loads(m.raw) for m in request.messages] == json.loads(body)["messages"]


def test_memory_stays_within_its_bounds():
    parser = Parser(SHAPE, cache_bytes=200_000)
    for n in range(500):
        parser.parse(body_of(json.dumps({"role": "user", "content": f"{n} " + "x" * 3000}).encode(), USER))
    held = parser.remembered_bytes

    assert 50_000 < held <= 200_000


def test_a_resent_history_costs_less_than_reading_it():
    rng = random.Random(1)
    text = "".join(chr(rng.randrange(32, 126)) for _ in range(1500))
    messages = [json.dumps({"role": "user", "content": f"{n} {text}"}).encode() for n in range(300)]
    parser, body = Parser(SHAPE), body_of(*messages)
    parser.parse(body)

    assert least_seconds(lambda: parser.parse(body)) < least_seconds(lambda: json.loads(body))


def least_seconds(work) -> float:
    times = []
    for _ in range(10):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)
