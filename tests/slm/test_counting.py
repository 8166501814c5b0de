"""The proxy counts the tokens of a local model as its engine does."""

import argparse
import inspect
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from memory.messages import Message
from memory.slm.counting import Counting, counting
from memory.slm.engine import Engine, Ready
from memory.slm.probes import PROBES, Frame, Messages, frame
from memory.slm.tokenizer import merges_by_score, tokenizer
from memory.slm.weights import Weights
from memory.tokens import Counter
from tests.memory.test_tokens import VARIED
from tests.slm.engines import running, url_of

CODE = inspect.getsource(argparse)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def engine(tiny_weights: Weights, home: Path) -> Iterator[Engine]:
    with running(tiny_weights, home) as started:
        yield started


@pytest.fixture(scope="module")
def how(engine: Engine, home: Path) -> Counting:
    assert engine.ready is not None
    return counting(engine.running.weights, home, engine.ready)


def test_every_kind_of_text_has_as_many_tokens_as_the_engine_counts(engine: Engine, how: Counting) -> None:
    texts = [*VARIED, *PROBES, *(CODE[start : start + 2_000] for start in range(0, 40_000, 2_000))]
    with httpx.Client(base_url=url_of(engine).removesuffix("/v1"), timeout=60) as client:
        told = [client.post("/tokenize", json={"content": text, "parse_special": False}).json() for text in texts]
    theirs = [len(answer["tokens"]) for answer in told]
    assert how.encoding is not None
    assert Counter().texts(texts, how.encoding) == theirs
    assert how.factor == 1


def test_a_conversation_is_never_counted_lower_and_hardly_higher(engine: Engine, how: Counting) -> None:
    rng, counter = random.Random(0), Counter()
    assert how.encoding is not None
    for _ in range(20):
        roles = ["system"] * rng.randrange(2) + ["user", "assistant"] * rng.randrange(6) + ["user"]
        said = [(role, rng.choice(VARIED) or "x") for role in roles]
        messages = [{"role": role, "content": text} for role, text in said]
        got = httpx.post(f"{url_of(engine)}/chat/completions/input_tokens", json={"messages": messages}, timeout=60)
        ours = sum(counter.messages([Message(role, text, b"") for role, text in said], how.encoding))
        ours += counter.reply(how.encoding)
        special = sum(text.count("<|") for _, text in said)  # names of special tokens: for us text, up to 8 tokens
        assert 0 <= ours - got.json()["input_tokens"] <= 24 + len(said) + 8 * special


def test_where_the_engine_counts_more_the_window_counts_for_less(tiny_weights: Weights, home: Path) -> None:
    agreed = Counter().texts(PROBES, counting(tiny_weights, home, ready([1] * len(PROBES))).encoding or "")
    more = counting(tiny_weights, home, ready([2 * count for count in agreed]))
    assert more.factor == pytest.approx(2.1)


def ready(counts: list[int]) -> Ready:
    return Ready("http://127.0.0.1:1/v1", 8_192, counts, 6, 24)


def test_a_model_without_a_vocabulary_of_a_known_kind_is_counted_with_another(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    bare = Weights(tmp_path, "folder", None, "bare")
    found = counting(bare, tmp_path / "home", ready([3 * len(probe) for probe in PROBES]))
    assert found.encoding is None
    assert found.factor > 3


def test_what_is_kept_says_what_the_template_adds(how: Counting) -> None:
    counter = Counter()
    assert how.encoding is not None
    assert counter.reply(how.encoding) == 24
    assert counter.message(Message("user", "", b""), how.encoding) == 6


def test_a_vocabulary_with_scores_merges_the_better_one_first() -> None:
    tokens = ["<unk>", "\u2581", "a", "b", "c", "ab", "bc", "abc", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    scores = [0.0, *(-9.0 for _ in range(4)), -1.0, -2.0, -3.0, 0.0, *(0.0 for _ in range(256))]
    kinds = [2, 1, 1, 1, 1, 1, 1, 1, 4, *(6 for _ in range(256))]
    made = tokenizer({"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds})
    assert made is not None
    assert made.encode("abc bc", add_special_tokens=False).tokens == ["abc", "\u2581", "bc"]
    assert made.encode("a\n\né", add_special_tokens=False).tokens == ["a", "\n\n", "<0xC3>", "<0xA9>"]
    assert merges_by_score({"a": 0, "b": 1, "ab": 2}, [0, 0, -1]) == [("a", "b")]


@pytest.mark.parametrize("vocabulary", [{}, {"model": "t5", "tokens": ["a"]}, {"model": "gpt2", "tokens": None}])
def test_other_kinds_of_vocabularies_are_left_alone(vocabulary: dict[str, object]) -> None:
    assert tokenizer(vocabulary) is None


# What a template adds, measured on templates that differ.


def counted(around: dict[str, int], once: int, default: int = 0, alternates: bool = False, system: bool = True):
    def prompt(messages: Messages) -> int | None:
        roles = [message["role"] for message in messages]
        if (alternates and any(a == b for a, b in itertools.pairwise(roles))) or (not system and "system" in roles):
            return None
        tokens = sum(around[message["role"]] + len(message["content"]) for message in messages) + once
        return tokens + (0 if "system" in roles else default)

    return frame(len, prompt)


CHATML = {"system": 5, "user": 5, "assistant": 6}


def test_the_largest_frame_is_that_of_all_messages() -> None:
    assert counted(CHATML, once=4, default=24) == Frame(6, 27)


def test_a_template_that_wants_turns_is_measured_by_both() -> None:
    assert counted(CHATML, once=4, alternates=True) == Frame(6, 3)


def test_a_template_without_system_messages_is_measured_without() -> None:
    assert counted({"user": 4, "assistant": 1}, once=2, alternates=True, system=False) == Frame(3, 3)


def test_a_model_without_a_template_has_no_frame() -> None:
    assert frame(len, lambda messages: None) is None
