"""Tokens are counted as the provider counts them, once for each message, without the network."""

import itertools
import random
import string
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from memory import tokens
from memory.messages import Media, Message, ToolCall
from memory.tokens import ENCODINGS, Counter, Recent, estimate, image_tokens, tiktoken_engine, toktok_engine

BOTH = pytest.mark.parametrize("encoding", ENCODINGS)

# Texts whose tokens are easily got wrong: white space, contractions, digits, scripts, emoji, code, markup.
KERNELS = [
    "", " ", "\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000", "\u200b", "\x00", "a", "A", "é", "e\u0301", "ß",
    "hello world", "Hello, World!", "don't can't WE'LL i'd I'VE", "1234567890", "3.14159", "1,000,000", "٣٤٥",
    "def f(x):\n    return x**2\n", "<|endoftext|>", "<|im_start|>user<|im_sep|>", "{\"a\": [1, 2, null]}",
    "https://example.com/a?b=c#d", "/usr/lib/python3.11/site-packages", "2026-11-22T10:00:00Z ERROR [main] x=1",
    "Straße Köln Übung", "Привет, мир", "你好,世界", "こんにちは世界", "안녕하세요", "नमस्ते दुनिया",
    "مرحبا بالعالم", "שלום", "ไทย",
    "😀", "👩\u200d👩\u200d👧\u200d👦", "🇩🇪", "½ ² ™", "a" * 50, "ab" * 40, "!?" * 20, "=" * 80, "-" * 33, "    " * 9,
    "CamelCaseIdentifierName", "snake_case_identifier", "deadbeefcafe0123", "dGhlIHF1aWNrIGJyb3duIGZveA==",
]  # fmt: skip
VARIED = [*KERNELS, *(a + b for a, b in itertools.product(KERNELS[:26], [" tail", "\n\n", "'s", " 12", "!"]))]
VARIED += [" ".join(few) for few in itertools.pairwise(KERNELS)] + [
    "\n".join(few) for few in itertools.pairwise(KERNELS)
]
VARIED += ["".join(KERNELS[i::7]) * 3 for i in range(7)] + [" " * n + "x" for n in range(1, 60)]


@pytest.fixture(scope="module")
def oracle():
    """OpenAI's own encodings, through tiktoken's own loader and the rank files in the litellm wheel."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "litellm_core_utils" / "tokenizers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return {name: tiktoken.get_encoding(name) for name in ENCODINGS}


def message(role: str, text: str = "", **more) -> Message:
    return Message(role, text, raw=msgspec.json.encode({"role": role, "content": text}), **more)


class Counting:
    """An engine that notes what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, texts: Sequence[str], encoding: str) -> list[int]:
        self.batches.append(list(texts))
        return [len(text.split()) for text in texts]


# Texts


@BOTH
@pytest.mark.parametrize("engine", [toktok_engine, tiktoken_engine])
def test_every_engine_counts_varied_texts_as_tiktoken_does(engine, encoding, oracle):
    assert len(VARIED) >= 331
    assert engine()(VARIED, encoding) == [len(oracle[encoding].encode_ordinary(text)) for text in VARIED]


@BOTH
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=60), max_size=8))
def test_any_text_has_as_many_tokens_as_tiktoken_says(encoding, oracle, texts):
    """Of characters that Python knows: toktok takes U+323B0, of Unicode 17, for a letter, and tiktoken not yet."""
    assert Counter().texts(texts, encoding) == [len(oracle[encoding].encode_ordinary(text)) for text in texts]


@BOTH
def test_lone_surrogates_count_as_tiktoken_counts_them(encoding, oracle):
    text = "half \ud83d of an emoji, \udc00 and the other half"

    assert Counter().text(text, encoding) == len(oracle[encoding].encode_ordinary(text))


@BOTH
@pytest.mark.parametrize("char", [" ", "\t", "\n", "\u3000", "a", "€"])
def test_a_run_of_a_million_characters_is_counted(encoding, char):
    assert 1_000 < Counter().text(char * 1_000_000, encoding) <= 3_000_000


def test_tiktoken_as_the_fallback_does_not_panic_on_a_million_spaces():
    """tiktoken 0.14 panics on such a run with o200k_base, so long texts reach it in pieces."""
    counter = Counter(engine=tiktoken_engine())

    assert 7_000 < counter.text(" " * 1_000_000, "o200k_base") < 9_000
    assert counter.estimated == 0


def test_an_encoding_without_vocabulary_is_counted_as_cl100k_base():
    assert Counter().text("some words", "p99k_base") == Counter().text("some words", "cl100k_base")


def test_a_panic_in_rust_becomes_a_flagged_estimate():
    PanicException = type("PanicException", (BaseException,), {})

    def panics(texts: Sequence[str], encoding: str) -> list[int]:
        raise PanicException("stack overflow")

    counter = Counter(engine=panics)

    assert counter.texts(["ten letters"], "o200k_base") == [4]
    assert counter.estimated == 1


def test_an_interrupt_is_not_taken_for_a_panic():
    def interrupted(texts: Sequence[str], encoding: str) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Counter(engine=interrupted).text("x", "o200k_base")


def test_without_any_tokenizer_bytes_decide_and_the_counter_says_so(monkeypatch):
    def missing():
        raise ImportError

    monkeypatch.setattr(tokens, "toktok_engine", missing)
    monkeypatch.setattr(tokens, "tiktoken_engine", missing)
    counter = Counter()

    assert counter.texts(["", "ab", "abcd", "\ud800"], "cl100k_base") == [0, 1, 2, 1]
    assert counter.estimated == 4


def test_the_estimate_is_not_below_the_count_of_prose():
    prose = "The quick brown fox jumps over the lazy dog. " * 20

    assert estimate([prose], "cl100k_base") >= Counter().texts([prose], "cl100k_base")


# Messages


def test_known_messages_are_never_counted_again():
    engine = Counting()
    counter = Counter(engine=engine)
    history = [message("user", f"question {n}") for n in range(50)]

    first = counter.messages(history, "o200k_base")
    again = counter.messages([*history, message("user", "one more")], "o200k_base")

    assert again[:50] == first
    assert engine.batches == [[f"question {n}" for n in range(50)], ["one more"]]


def test_all_that_is_missing_goes_in_one_batch_and_twins_once():
    engine = Counting()
    counter = Counter(engine=engine)
    counter.message(message("user", "b"), "o200k_base")

    counts = counter.messages([message("user", text) for text in "abaac"], "o200k_base")

    assert engine.batches == [["b"], ["a", "c"]]
    assert len(set(counts)) == 1


def test_trailing_white_space_is_the_same_message_but_not_the_same_tokens():
    counter = Counter()
    short, long = message("user", "hello"), message("user", "hello" + "\n\t" * 500)

    assert short == long
    assert counter.message(long, "cl100k_base") > counter.message(short, "cl100k_base") + 100


def test_counts_of_400_known_messages_cost_a_fraction_of_counting_them():
    counter = Counter()
    history = [message("user", f"{n} " + "some words of a usual message " * 40) for n in range(400)]
    started = time.perf_counter()
    counter.messages(history, "cl100k_base")
    cold = time.perf_counter() - started

    warm = []
    for _ in range(20):
        started = time.perf_counter()
        counter.messages(history, "cl100k_base")
        warm.append(time.perf_counter() - started)

    assert min(warm) < cold / 8


@given(keys=st.lists(st.integers(0, 40)), most=st.integers(2, 20))
def test_kept_counts_are_bounded_and_right(keys, most):
    recent: Recent[int] = Recent(most)
    for key in keys:
        assert recent.get([key, -1]) in ([key, None], [None, None])
        recent.put({key: key})
        assert recent.get([key]) == [key]
        assert len(recent) <= most + 1


def test_what_is_asked_for_again_and_again_stays():
    recent: Recent[int] = Recent(10)
    recent.put({-1: 1})
    for key in range(100):
        recent.put({key: key})
        assert recent.get([-1]) == [1]


# Against a provider


def provider_count(bpe: tiktoken.Encoding, conversation: list[dict], tools: list[dict]) -> int:
    """What a plain provider counts: 4 a message, contents, names and arguments of calls, tools as compact JSON."""

    def count(text: str) -> int:
        return len(bpe.encode_ordinary(text))

    total = count(msgspec.json.encode(tools).decode()) if tools else 0
    for m in conversation:
        content = m.get("content") or ""
        parts = [content] if isinstance(content, str) else [part["text"] for part in content]
        total += 4 + sum(map(count, parts))
        total += sum(count(c["function"]["name"]) + count(c["function"]["arguments"]) for c in m.get("tool_calls", []))
    return total


def parsed(m: dict) -> Message:
    content = m.get("content") or ""
    text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    calls = [ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in m.get("tool_calls", [])]
    raw = msgspec.json.encode(m)
    return Message(m["role"], text, raw, name=m.get("name"), calls=tuple(calls), call_id=m.get("tool_call_id"))


TEXTS = st.text(st.sampled_from(" \n\t.,!?aZ19'\"{}[]:/é你😀"), max_size=30)
CALLS = st.lists(
    st.builds(
        lambda name, arguments: {
            "id": "call_x",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        },
        TEXTS,
        TEXTS,
    ),
    max_size=3,
)
MESSAGES = st.one_of(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user", "critic"]), TEXTS),
    st.builds(
        lambda texts: {"role": "user", "content": [{"type": "text", "text": text} for text in texts]},
        st.lists(TEXTS, max_size=5),
    ),
    st.builds(lambda text, calls: {"role": "assistant", "content": text, "tool_calls": calls}, TEXTS, CALLS),
    st.builds(lambda text: {"role": "tool", "content": text, "tool_call_id": "call_x"}, TEXTS),
)


@settings(max_examples=150, deadline=None)
@given(conversation=st.lists(MESSAGES, max_size=6), spaces=st.booleans(), description=TEXTS)
def test_a_provider_never_counts_more_than_we_do(oracle, conversation, spaces, description):
    tools = [{"type": "function", "function": {"name": "f", "description": description, "parameters": {"n": 1.5}}}]
    schema = msgspec.json.format(msgspec.json.encode(tools), indent=2 if spaces else -1)
    counter = Counter()

    ours = sum(counter.messages([parsed(m) for m in conversation], "cl100k_base"))
    ours += counter.schemas([schema], "cl100k_base")

    assert ours >= provider_count(oracle["cl100k_base"], conversation, tools)


def test_text_parts_that_merge_when_joined_are_not_counted_below_the_parts(oracle):
    parts = [{"type": "text", "text": text} for text in ("x\n", "\ny") * 20]
    asked = {"role": "user", "content": parts}

    assert Counter().message(parsed(asked), "cl100k_base") >= provider_count(oracle["cl100k_base"], [asked], [])


def test_a_schema_that_grows_when_it_is_written_anew_is_counted_grown(oracle):
    tools = msgspec.json.decode(schema := b"[" + b",".join([b"1e15"] * 30) + b"]")

    assert Counter().schemas([schema], "cl100k_base") >= provider_count(oracle["cl100k_base"], [], tools)


def test_on_a_usual_agent_session_we_count_at_most_3_percent_more(oracle):
    rng = random.Random(7)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(300)]

    def prose(n: int) -> str:
        return " ".join(rng.choices(words, k=n))

    conversation: list[dict] = [{"role": "system", "content": prose(300)}, {"role": "user", "content": prose(60)}]
    for n in range(30):
        arguments = msgspec.json.encode({"path": f"/src/{prose(2)}.py", "lines": [n, n + 80]}).decode()
        call = {"id": f"call_{n:024}", "type": "function", "function": {"name": "read_file", "arguments": arguments}}
        conversation.append({"role": "assistant", "content": prose(20), "tool_calls": [call]})
        conversation.append({"role": "tool", "content": prose(150), "tool_call_id": call["id"]})
    tools = [
        {"type": "function", "function": {"name": f"f{n}", "description": prose(40), "parameters": {"type": "object"}}}
        for n in range(8)
    ]
    counter = Counter()

    ours = sum(counter.messages([parsed(m) for m in conversation], "cl100k_base"))
    ours += counter.schemas([msgspec.json.encode(tools)], "cl100k_base")

    assert 1.0 <= ours / provider_count(oracle["cl100k_base"], conversation, tools) <= 1.03


@BOTH
def test_a_message_costs_what_the_cookbook_says(encoding):
    counter = Counter()
    text = "Let's circle back when we have more bandwidth."

    assert counter.message(message("user", text), encoding) == 3 + 1 + counter.text(text, encoding)
    named = message("system", text, name="example_user")
    assert counter.message(named, encoding) == 3 + 1 + counter.text(text, encoding) + 1 + counter.text(
        "example_user", encoding
    )


def test_a_role_nobody_knows_is_counted_as_the_text_it_is():
    counter = Counter()
    role = "a role of very many words " * 50

    assert counter.message(message(role), "o200k_base") == 3 + counter.text(role, "o200k_base")


# Media


@pytest.mark.parametrize(
    ("width", "height", "detail", "expected"),
    [
        (1024, 1024, "high", 765),  # the three examples of OpenAI's guide
        (2048, 4096, "high", 1105),
        (4096, 8192, "low", 85),
        (150, 150, "auto", 255),
        (512, 512, "high", 255),
        (513, 100, "high", 425),
        (1, 100_000, "high", 85 + 4 * 170),
        (None, None, "auto", 1445),
        (0, 0, "high", 1445),
        (-5, 5, "high", 1445),
        (None, None, "low", 85),
    ],
)
def test_a_picture_costs_what_openai_charges_for_its_tiles(width, height, detail, expected):
    assert image_tokens(width, height, detail) == expected


@given(width=st.integers(1, 100_000), height=st.integers(1, 100_000))
def test_no_picture_costs_more_than_one_of_unknown_size(width, height):
    assert 255 <= image_tokens(width, height, "high") <= image_tokens(None, None, "high")


def test_media_are_counted_beside_the_text():
    counter = Counter()
    picture = Media("image", b"1" * 16, 1024, 1024, "high")
    plain = counter.message(message("user", "look"), "o200k_base")

    assert counter.message(message("user", "look", media=(picture, picture)), "o200k_base") == plain + 2 * 765


@pytest.mark.parametrize(("kind", "least", "grown"), [("audio", 300, 1_000), ("file", 2_000, 40_000)])
def test_sound_and_files_are_estimated_from_their_size(kind, least, grown):
    counter = Counter()
    media = (Media(kind, b"1" * 16),)
    small, large = (Message("user", "", raw=b"x" * size, media=media) for size in (100, 1_000_000))

    assert counter.message(small, "o200k_base") == 4 + least
    assert counter.message(large, "o200k_base") == 4 + grown


# Schemas


def test_no_schemas_cost_nothing_and_known_ones_are_not_counted_again():
    engine = Counting()
    counter = Counter(engine=engine)

    assert counter.schemas([], "o200k_base") == 0
    assert counter.schemas([b'{"a": 1}'], "o200k_base") == counter.schemas([b'{"a": 1}'], "o200k_base")
    assert len(engine.batches) == 1


@pytest.mark.parametrize("schema", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"\\ud800"'])
def test_a_schema_that_is_no_json_is_counted_as_text(schema):
    assert Counter().schemas([schema], "o200k_base") >= 12
