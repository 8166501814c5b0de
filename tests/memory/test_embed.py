"""Embedders: whichever it is, rows of unit length come out; and what cannot answer says so."""

import asyncio
import base64
import contextlib
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from memory.embed import (
    DIMENSIONS,
    MODEL_PIECES,
    HttpEmbedder,
    OnnxEmbedder,
    _tokenizer,
    chunks,
    embedder,
    serve_embeddings,
)
from memory.errors import InvalidRequest, ModelError
from tests.scripted import End, ScriptedUpstream, Seen, Steps, answer

PARAGRAPH = "The gateway keeps 40 connections to PostgreSQL. When all are busy, a request waits for 250 ms at most. "


@pytest.fixture(scope="module")
def minilm() -> Iterator[OnnxEmbedder]:
    """One for all tests: loading costs a third of a second."""
    model = OnnxEmbedder()
    yield model
    asyncio.run(model.close())


# The built-in model


async def test_similarities_are_those_that_the_models_authors_publish(minilm: OnnxEmbedder) -> None:
    """Source: sbert.net, quickstart of all-MiniLM-L6-v2 in float32; our int8 products are within 0.02."""
    rows = await minilm.embed(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])

    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(rows @ rows.T, published, atol=0.02)


async def test_the_fact_that_answers_a_question_is_nearest_to_it(minilm: OnnxEmbedder) -> None:
    pairs = [
        ("which port does the metrics server use", "Prometheus scrapes us on 9090."),
        ("who approved the refund", "Maria signed off on paying the customer back."),
        ("why did the build fail", "The compiler stopped: undefined reference to foo()."),
        ("how much memory does the worker need", "The background process stays under 350 MB of RAM."),
        ("when is the next release", "Version 2 ships on the third of March."),
    ]
    questions = await minilm.embed([question for question, _ in pairs])
    facts = await minilm.embed([fact for _, fact in pairs])

    assert (questions @ facts.T).argmax(axis=1).tolist() == list(range(len(pairs)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "\x00\x01",
        "\ud800 half a pair",
        "数据库连接池",
        "😀" * 50,
        "x" * 100_000,
        " " * 1_000_000,
        PARAGRAPH * 99,
    ],
    ids=["empty", "spaces", "control", "surrogate", "chinese", "emoji", "one word", "a million spaces", "long"],
)
async def test_every_text_has_a_vector_of_unit_length(minilm: OnnxEmbedder, text: str) -> None:
    rows = await minilm.embed([text])

    assert rows.shape == (1, DIMENSIONS)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)


async def test_no_texts_are_no_rows(minilm: OnnxEmbedder) -> None:
    assert (await minilm.embed([])).shape == (0, DIMENSIONS)


async def test_what_stands_behind_the_256th_piece_is_not_read(minilm: OnnxEmbedder) -> None:
    words = "alpha " * (MODEL_PIECES - 2)
    rows = await minilm.embed([words, words + "omega " * 50])

    assert rows[0] @ rows[1] == pytest.approx(1, abs=1e-6)


async def test_the_event_loop_goes_on_and_a_short_query_gets_its_turn_in_a_long_job(minilm: OnnxEmbedder) -> None:
    job = asyncio.create_task(minilm.embed([PARAGRAPH * 8] * 40))
    await asyncio.sleep(0)
    await minilm.embed(["a query"])

    assert not job.done()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_other_weights_than_the_known_ones_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.onnx"
    weights.write_bytes(b"not a model")
    for model in (OnnxEmbedder(weights=weights), OnnxEmbedder(weights=tmp_path / "absent")):
        with pytest.raises(ModelError, match="the built-in embedder's weights"):
            await model.embed(["text"])
        await model.close()


# Chunks


def pieces(text: str) -> list[str]:
    return list(_tokenizer().encode(text, add_special_tokens=False).tokens)


WORDS = st.sampled_from(
    [
        "word ",
        "Connection. ",
        "a\n\nb ",
        "\n",
        "x" * 90,
        "数据库。",
        "0xdeadbeef",
        "\x1c",
        "\x00",
        "naïve ",
        "한국어 ",
        "😀",
        "--",
        "\ud800",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(WORDS, st.integers(1, 120)), max_size=12),
    most=st.sampled_from([32, 64, 100]),
    overlap=st.integers(0, 40),
)
@example(parts=[("x" * 90, 1), ("--", 3), ("x" * 90, 2)], most=32, overlap=0)
def test_chunks_fit_the_model_and_together_hold_every_word(
    parts: list[tuple[str, int]], most: int, overlap: int
) -> None:
    text = "".join(word * times for word, times in parts)
    spans = chunks(text, most, overlap)

    assert all(0 < len(pieces(text[start:stop].replace("\ud800", "?"))) <= 100 for start, stop in spans)
    assert spans == sorted(spans)
    end, between = 0, ""
    for start, stop in spans:
        between += text[end:start]
        end = max(end, stop)
    assert pieces((between + text[end:]).replace("\ud800", "?")) == []


def test_cuts_fall_behind_paragraphs_else_sentences_else_words() -> None:
    sentence = "one two three four five six seven eight nine ten. "
    paragraphs = (sentence * 12 + "\n\n") * 4
    assert [paragraphs[stop:][:2] for _, stop in chunks(paragraphs)] == [" \n"] * 4

    sentences = sentence * 60
    assert {sentences[stop - 1] for _, stop in chunks(sentences)} == {"."}
    assert all(sentences[start:].startswith("one") for start, _ in chunks(sentences))

    words = "word " * 500
    assert all(words[start:stop].split(" ") == ["word"] * ((stop - start + 1) // 5) for start, stop in chunks(words))


def test_only_a_cut_sentence_is_told_twice() -> None:
    def overlaps(text: str) -> list[bool]:
        spans = chunks(text)
        return [right[0] < left[1] for left, right in pairwise(spans)]

    assert not any(overlaps(PARAGRAPH * 60))
    assert all(overlaps("word " * 900))


@pytest.mark.parametrize("text", ["a." + ("я" * 100 + ".") * 20, ("q" * 37 + "-") * 60], ids=["whole room", "third"])
def test_a_word_is_never_cut_and_never_left_out(text: str) -> None:
    spans = chunks(text, 100, 25)

    assert all(
        stop == len(text) or ("." in text[stop - 1 : stop + 1] or "-" in text[stop - 1 : stop + 1]) for _, stop in spans
    )
    assert all(right[0] <= left[1] for left, right in pairwise(spans))
    assert spans[-1][1] == len(text)


def test_characters_that_the_tokenizer_drops_are_no_place_to_cut() -> None:
    """U+001C is white space to Python; the tokenizer joins what stands on both sides, so half of it counts anew."""
    text = ("x" * 60 + "\x1c" + "x" * 60 + ".") * 150

    assert all(text[start] in "x." and text[stop - 1] == "." for start, stop in chunks(text, 100))


def test_a_short_text_is_one_chunk_and_nothing_is_none() -> None:
    assert chunks("  hello world\n") == [(2, 13)]
    assert chunks("") == chunks(" \n\t ") == []


def test_the_time_for_a_long_text_grows_evenly_with_it() -> None:
    text = PARAGRAPH * 3_000  # 300 KB, 0.3 s
    begin = time.process_time()
    spans = chunks(text)

    assert time.process_time() - begin < 3
    assert len(text) // 1_500 < len(spans) < len(text) // 500


@pytest.mark.parametrize("max_tokens", [31, 255])
def test_chunk_sizes_that_the_model_cannot_honour_are_refused(max_tokens: int) -> None:
    with pytest.raises(ValueError, match="32 to 254"):
        chunks("text", max_tokens)


# Over HTTP


def vectors(count: int, width: int = DIMENSIONS) -> NDArray[np.float32]:
    rows = np.arange(1, count * width + 1, dtype=np.float32).reshape(count, width)
    return np.asarray(rows, dtype=np.float32)


def openai_answer(rows: Sequence[object]) -> Steps:
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return answer(orjson.dumps({"object": "list", "data": data[::-1], "model": "m"}))


@contextlib.asynccontextmanager
async def asking(url: str, timeout_seconds: float = 5) -> AsyncIterator[HttpEmbedder]:
    model = HttpEmbedder(url, "m", api_key="sk-test", timeout_seconds=timeout_seconds)
    yield model
    await model.close()


@pytest.mark.parametrize("as_base64", [True, False])
async def test_numbers_and_base64_are_both_read_and_put_in_order_and_to_unit_length(as_base64: bool) -> None:
    rows = vectors(3)
    sent = [base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist() for row in rows]
    with ScriptedUpstream(openai_answer(sent)) as server:
        async with asking(server.url + "/v1") as model:
            got = await model.embed(["a", "b", "c"])
        asked = server.requests[0]

    np.testing.assert_allclose(got, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-6)
    assert (asked.method, asked.target) == ("POST", b"/v1/embeddings")
    assert asked.header(b"authorization") == b"Bearer sk-test"
    assert orjson.loads(asked.body) == {"model": "m", "input": ["a", "b", "c"], "encoding_format": "base64"}


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", b"/v1/embeddings"),
        ("/", b"/v1/embeddings"),
        ("/api/v3/", b"/api/v3/embeddings"),
        ("/x/embeddings", b"/x/embeddings"),
    ],
)
async def test_the_url_may_end_at_the_host_at_the_version_or_at_the_endpoint(path: str, target: bytes) -> None:
    with ScriptedUpstream(openai_answer(vectors(1).tolist())) as server:
        async with asking(server.url + path) as model:
            await model.embed(["a"])
        assert server.requests[0].target == target


async def test_many_texts_go_in_requests_of_32() -> None:
    def count(request: Seen) -> Steps:
        return openai_answer(vectors(len(orjson.loads(request.body)["input"])).tolist())

    with ScriptedUpstream(count) as server:
        async with asking(server.url) as model:
            assert (await model.embed(["text"] * 70)).shape == (70, DIMENSIONS)
            assert (await model.embed([])).shape == (0, DIMENSIONS)
        assert [len(orjson.loads(request.body)["input"]) for request in server.requests] == [32, 32, 6]


async def test_a_wider_model_is_asked_for_384_dimensions() -> None:
    def matryoshka(request: Seen) -> Steps:
        return openai_answer(vectors(1, orjson.loads(request.body).get("dimensions", 1536)).tolist())

    with ScriptedUpstream(matryoshka) as server:
        async with asking(server.url) as model:
            assert (await model.embed(["a"])).shape == (1, DIMENSIONS)
            assert (await model.embed(["b"])).shape == (1, DIMENSIONS)
        assert len(server.requests) == 3


BAD_ANSWERS: dict[str, Steps] = {
    "status 500": answer(b"{}", status=500),
    "status 401": answer(b"{}", status=401),
    "no JSON": answer(b"<html>"),
    "no data": answer(b"{}"),
    "data of another kind": answer(b'{"data": 7}'),
    "too few": openai_answer([]),
    "too many": openai_answer(vectors(2).tolist()),
    "another width": openai_answer(vectors(1, 768).tolist()),
    "uneven": openai_answer([[1.0], [1.0, 2.0]]),
    "no base64": openai_answer(["%%%"]),
    "half a float": openai_answer(["AAAAAAA="]),
    "null": openai_answer([[None] * DIMENSIONS]),
    "zeros": openai_answer([[0.0] * DIMENSIONS]),
    "infinite": openai_answer([base64.b64encode(np.full(DIMENSIONS, np.inf, "<f4").tobytes()).decode()]),
    "reset": [End.RESET],
    "closed": [End.CLOSE],
    "cut": [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", End.CLOSE],
    "silent": [End.HANG],
    "dripping": [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", *(0.1, b" ") * 50],
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_an_answer_that_is_none_is_a_model_error_in_time(name: str) -> None:
    with ScriptedUpstream(BAD_ANSWERS[name]) as server:
        async with asking(server.url, timeout_seconds=0.5) as model:
            begin = time.monotonic()
            with pytest.raises(ModelError):
                await model.embed(["a"])
            assert time.monotonic() - begin < 3


async def test_a_server_that_is_not_there_is_a_model_error() -> None:
    async with asking("http://127.0.0.1:1") as model:
        with pytest.raises(ModelError, match="did not answer: ConnectError"):
            await model.embed(["a"])


# Our own server


class Fake:
    """Vectors that tell how long the texts were; refuses the word `refuse`."""

    name = "fake"

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if "refuse" in texts:
            raise ModelError("the model is away")
        rows = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for row, text in enumerate(texts):
            rows[row, len(text)] = 1
        return rows


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "e.sock"
    serving = asyncio.create_task(serve_embeddings(Fake(), path))
    await answering(path)
    yield path
    serving.cancel()
    await asyncio.wait([serving])
    assert not path.exists()


async def answering(path: Path) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the server did not come up")


async def test_another_process_gets_the_same_vectors_through_the_socket(minilm: OnnxEmbedder, tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    serving = asyncio.create_task(serve_embeddings(minilm, path))
    await answering(path)
    client = embedder("builtin", socket_path=str(path))
    assert client is not None
    texts = ["a query", "half a pair \ud800", ""]

    assert client.name == minilm.name
    np.testing.assert_allclose(await client.embed(texts), await minilm.embed(texts), atol=1e-6)
    await client.close()
    serving.cancel()
    await asyncio.wait([serving])


async def test_only_its_owner_can_open_the_socket(served: Path) -> None:
    assert stat.S_IMODE(served.stat().st_mode) == 0o600


async def test_a_socket_left_by_a_dead_process_is_replaced_and_a_successors_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    old = asyncio.create_task(serve_embeddings(Fake(), path))
    await answering(path)
    new = asyncio.create_task(serve_embeddings(Fake(), path))
    await asyncio.sleep(0.2)
    old.cancel()
    await asyncio.wait([old])

    await answering(path)
    new.cancel()
    await asyncio.wait([new])
    assert list(tmp_path.iterdir()) == []


async def test_signals_stay_with_the_process_that_serves(served: Path) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/embeddings", b'{"input": "one"}', 200),
        ("POST", "/v1/embeddings", b'{"input": ["one", "two"], "encoding_format": "base64"}', 200),
        ("POST", "/v1/embeddings", b'{"input": []}', 200),
        ("POST", "/v1/embeddings", b"", 400),
        ("POST", "/v1/embeddings", b"[]", 400),
        ("POST", "/v1/embeddings", b'{"input": [1, 2]}', 400),
        ("POST", "/v1/embeddings", b'{"input": [' + b'"",' * 2048 + b'""]}', 400),
        ("POST", "/v1/embeddings", b'{"input": "' + b"x" * 9_000_000 + b'"}', 400),
        ("POST", "/v1/embeddings", b'{"input": "refuse"}', 503),
        ("GET", "/v1/embeddings", b"", 404),
        ("POST", "/", b"", 404),
    ],
)
async def test_the_server_answers_as_openai_does(
    served: Path, method: str, path: str, body: bytes, status: int
) -> None:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(served))) as client:
        got = await client.request(method, "http://embedder" + path, content=body)

    assert got.status_code == status
    assert ("data" if status == 200 else "error") in got.json()


async def test_a_question_left_by_its_client_does_not_disturb_the_next(served: Path) -> None:
    _, writer = await asyncio.open_unix_connection(served)
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    writer.close()
    await writer.wait_closed()
    client = embedder("builtin", socket_path=str(served))
    assert client is not None

    assert (await client.embed(["one"])).shape == (1, DIMENSIONS)
    await client.close()


async def test_who_asks_over_a_socket_outlives_the_server_and_questions_that_nobody_waits_for(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    client = embedder("builtin", socket_path=str(path))
    assert client is not None
    for _ in range(2):
        serving = asyncio.create_task(serve_embeddings(Fake(), path))
        await answering(path)
        left = [asyncio.create_task(client.embed(["one"])) for _ in range(20)]
        await asyncio.sleep(0)
        for asking in left[::2]:
            asking.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert (await client.embed(["one"])).shape == (1, DIMENSIONS)
        serving.cancel()
        await asyncio.wait([serving])
        with pytest.raises(ModelError, match="did not answer"):
            await client.embed(["one"])
    await client.close()


async def test_a_server_that_hangs_up_did_not_answer(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    client = embedder("builtin", socket_path=str(tmp_path / "e.sock"))
    assert client is not None
    async with await asyncio.start_unix_server(hang_up, tmp_path / "e.sock"):
        with pytest.raises(ModelError, match="did not answer"):
            await client.embed(["one"])
    await client.close()


# The setting


async def test_a_setting_names_an_embedder() -> None:
    assert embedder("none") is None
    assert isinstance(embedder("builtin"), OnnxEmbedder)
    remote = embedder("https://tei.example/v1#BAAI/bge-small-en-v1.5", api_key="k")
    assert isinstance(remote, HttpEmbedder)
    assert remote.name == "BAAI/bge-small-en-v1.5"
    await remote.close()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("http://tei:8080/v1", "<url>#<model>"),
        ("builtinn", "<url>#<model>"),
        ("", "<url>#<model>"),
    ],
)
def test_a_setting_that_names_none_says_what_would(spec: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        embedder(spec)
    assert caught.value.field == "embedder"
