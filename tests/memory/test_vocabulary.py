"""A model's own vocabulary is counted with where a `tokenizer.json` is named as its encoding."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from memory.embed import TOKENIZER
from memory.messages import Message
from memory.tokens import MESSAGE_TOKENS, REPLY_TOKENS, Counter
from memory.vocabulary import BLOCK_CHARS, FRAME


@pytest.fixture
def named(tmp_path: Path) -> str:
    """MiniLM's vocabulary, which is not OpenAI's and cuts at 128 tokens by itself."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(TOKENIZER.read_bytes())
    return str(path)


TEXTS = ["", "hello world", "über die Brücke", "渡轮七点半出发 🙂", "a b c " * 500, "unbelievable"]


def test_texts_have_as_many_tokens_as_the_vocabulary_says(named: str) -> None:
    tokenizer = Tokenizer.from_file(named)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    wanted = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS]
    assert Counter().texts(TEXTS, named) == wanted
    assert wanted[4] > 1_000


def test_a_long_text_is_counted_in_blocks_and_never_lower(named: str) -> None:
    text = "unbelievable " * (BLOCK_CHARS // 4)
    assert Counter().text(text, named) >= Counter().text("unbelievable", named) * (BLOCK_CHARS // 4)


def test_half_a_surrogate_pair_is_counted_as_something(named: str) -> None:
    assert Counter().text("a \ud83d b", named) == 3


def test_a_message_has_what_the_models_template_puts_around_it(named: str) -> None:
    said = Message("assistant", "hello world", b'{"role":"assistant","content":"hello world"}')
    usual = Counter().message(said, named)
    Path(named).with_name(FRAME).write_text(json.dumps({"message_tokens": 6, "reply_tokens": 24}))
    counter = Counter()
    assert counter.message(said, named) == 2 + 6 < usual
    assert counter.reply(named) == 24


def test_openais_own_frame_stays_for_openais_encodings(named: str) -> None:
    said = Message("user", "hello world", b'{"role":"user","content":"hello world"}')
    counter = Counter()
    counter.message(said, named)
    assert counter.message(said, "o200k_base") == 2 + MESSAGE_TOKENS + 1
    assert counter.reply("o200k_base") == counter.reply("klingon") == REPLY_TOKENS


@pytest.mark.parametrize("content", [None, b"", b"{}", b"no json"])
def test_where_a_vocabulary_cannot_be_read_another_is_counted_with(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    counter = Counter()
    assert counter.text("hello world", str(path)) == counter.text("hello world", "cl100k_base")
    assert counter.reply(str(path)) == REPLY_TOKENS
