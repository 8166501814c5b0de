"""Texts to vectors: rows of unit length, so that a dot product is the cosine.

Two ways to the same shape. `OnnxEmbedder` runs MiniLM in this process, without a network; `HttpEmbedder` asks any
server that speaks OpenAI's /v1/embeddings. `serve_embeddings` is such a server, on a unix socket, so that one process
holds the model and the others ask it. `chunks` cuts a text into pieces that the model reads whole.

Only texts go in and vectors come out; where vectors are kept is not known here.
"""

import asyncio
import base64
import contextlib
import re
import socket
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable
from urllib.parse import urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from memory.errors import InvalidRequest, ModelError
from memory.minilm import DIMENSIONS, MODEL_PIECES, MiniLM
from memory.post import LocalPost, NetworkPost, Post
from memory.segments import Segmented
from memory.settings import EMBEDDERS, names_embedder

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

T = TypeVar("T")

TOKENIZER = Path(__file__).parent / "data" / "minilm-tokenizer.json"

BLOCK_CHARS = 32_768  # what the tokenizer gets at once: a piece costs it some 200 bytes, and texts can have 10 MB
READ_CHARS = 16_384  # more than 256 pieces of any written language; keeps a 10 MB "query" cheap
TEXTS_PER_REQUEST = 32  # what Hugging Face's text-embeddings-inference takes by default
MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_TEXTS = 2_048  # OpenAI's own bound


class Embedder(Protocol):
    """What turns texts into vectors. `name` is stored beside each vector: only vectors of one name compare."""

    @property
    def name(self) -> str: ...

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts for semantic search.

        Returns:
            (n, 384) float32, rows of unit length.

        Raises:
            ModelError: the embedder did not answer; the job is tried again later.
        """
        ...


@runtime_checkable
class Segmenter(Protocol):
    """An embedder that sees what a text is made of. One behind a URL gives a vector a text and no more."""

    async def embed_segmented(self, texts: Sequence[str]) -> Sequence[Segmented]:
        """Embed texts, and the things they speak of (`memory.segments`). Raises as `Embedder.embed` does."""
        ...


async def embed_segmented(embedder: Embedder, texts: Sequence[str], fine: bool = True) -> Sequence[Segmented]:
    """Embed texts, `fine` with segments where the embedder tells them."""
    if fine and isinstance(embedder, Segmenter):
        return await embedder.embed_segmented(texts)
    return [Segmented(row) for row in await embedder.embed(texts)]


def embedder(
    spec: str, *, socket_path: str | None = None, api_key: str | None = None, timeout_seconds: float = 10.0
) -> "OnnxEmbedder | HttpEmbedder | None":
    """The embedder that a setting names; None for `none`: search goes by words alone then.

    Args:
        spec: `builtin`, `none`, or `<url>#<model>` such as `http://tei:8080/v1#sentence-transformers/all-MiniLM-L6-v2`.
        socket_path: for `builtin`, ask the process that serves there instead of loading the model into this one.
        api_key: for a URL.
        timeout_seconds: for one answer over HTTP or the socket.

    Raises:
        InvalidRequest: the setting names nothing we have.
    """
    if spec == "none":
        return None
    if spec == "builtin" and socket_path is None:
        return OnnxEmbedder()
    if spec == "builtin":
        url, model = "http://embedder", OnnxEmbedder.name
        return HttpEmbedder(url, model, socket_path=socket_path, timeout_seconds=timeout_seconds)
    if not names_embedder(spec):
        raise InvalidRequest(f"embedder must be {EMBEDDERS}, got {spec!r}", "embedder")
    url, _, model = spec.partition("#")
    return HttpEmbedder(url, model, api_key=api_key, timeout_seconds=timeout_seconds)


class OnnxEmbedder:
    """all-MiniLM-L6-v2 with int8 weights on ONNX Runtime: English foremost, 256 word pieces a text.

    Texts go through one by one: batches cost more a text on a CPU, and between two texts of a long job a short query
    gets its turn. All work is done in threads of its own, so the event loop never waits for it. Each thread takes a
    text of its own: two threads on one text wait for each other and cost twice the CPU.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084; the recipe (mean of all pieces, then unit length) is the
    model card's of sentence-transformers/all-MiniLM-L6-v2.
    """

    name = "all-MiniLM-L6-v2-int8-dynamic"

    def __init__(self, threads: int = 1, weights: Path | None = None) -> None:
        """`weights`: where the file lies; left out, in the package that brings it."""
        self._threads = threads
        self._weights = weights
        self._worker = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="embed")
        self._model: MiniLM | None = None
        self._loading = Lock()

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = await self._each(self._embed_one, texts)
        return np.array(rows, dtype=np.float32).reshape(len(texts), DIMENSIONS)

    async def embed_segmented(self, texts: Sequence[str]) -> Sequence[Segmented]:
        return await self._each(self._embed_segmented, texts)

    async def close(self) -> None:
        """Let go of the model and its thread."""
        self._worker.shutdown(wait=False)
        self._model = None

    async def _each(self, work: Callable[[str], T], texts: Sequence[str]) -> list[T]:
        """What `work` makes of each text, in their order; every thread takes the next that waits."""
        made: dict[int, T] = {}
        loop = asyncio.get_running_loop()
        waiting = iter(enumerate(texts))

        async def take() -> None:
            for place, text in waiting:
                made[place] = await loop.run_in_executor(self._worker, work, text)

        await asyncio.gather(*(take() for _ in range(self._threads)))
        return [made[place] for place in range(len(texts))]

    def _embed_one(self, text: str) -> NDArray[np.float32]:
        return self._loaded().vector(_encoded(text[:READ_CHARS]).ids)

    def _embed_segmented(self, text: str) -> Segmented:
        read = text[:READ_CHARS]
        encoding = _encoded(read)
        starts = [left for left, _ in encoding.offsets]
        lines = sorted({bisect_left(starts, match.end()) for match in _PAUSES[1].finditer(read)} - {0, len(starts)})
        whole, runs = self._loaded().segmented(encoding.ids, [0, *lines])
        edges = [*starts, len(read)]
        return Segmented(whole, runs.vectors, tuple(edges[stop] for stop in runs.stop_pieces))

    def _loaded(self) -> MiniLM:
        with self._loading:
            if self._model is None:
                self._model = MiniLM(self._weights)
            return self._model


class HttpEmbedder:
    """Any server with OpenAI's /v1/embeddings, by URL or on a unix socket.

    `name` is the model's alone, so a server can move. Answers of another width than 384 are asked for once more with
    `dimensions`, which OpenAI's text-embedding-3 models understand.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        socket_path: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float,
    ) -> None:
        self.name = model
        self._timeout_seconds = timeout_seconds
        self._extra: dict[str, object] = {}
        where = _embeddings_url(url)
        self._post: Post = (
            LocalPost(where, socket_path) if socket_path else NetworkPost(where, api_key, timeout_seconds)
        )

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        parts = [
            await self._ask(texts[start : start + TEXTS_PER_REQUEST])
            for start in range(0, len(texts), TEXTS_PER_REQUEST)
        ]
        return np.concatenate(parts) if parts else np.empty((0, DIMENSIONS), dtype=np.float32)

    async def close(self) -> None:
        """Close the connections."""
        await self._post.close()

    async def _ask(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = _read_answer(await self._asked(texts), len(texts))
        if rows.shape[1] != DIMENSIONS and not self._extra:
            self._extra = {"dimensions": DIMENSIONS}
            rows = _read_answer(await self._asked(texts), len(texts))
        if rows.shape[1] != DIMENSIONS:
            raise ModelError(f"embedder {self.name} answered vectors of {rows.shape[1]} numbers, we store {DIMENSIONS}")
        return _unit_length(rows)

    async def _asked(self, texts: Sequence[str]) -> bytes:
        clean = [_without_surrogates(text) for text in texts]
        body = {"model": self.name, "input": clean, "encoding_format": "base64", **self._extra}
        try:
            async with asyncio.timeout(self._timeout_seconds):  # of all reads together
                status, content = await self._post(orjson.dumps(body))
        except OSError as error:  # a TimeoutError is one
            raise ModelError(f"embedder {self.name} did not answer: {str(error) or type(error).__name__}") from error
        if status != 200:
            raise ModelError(f"embedder {self.name} answered with status {status}")
        return content


def chunks(text: str, max_tokens: int = 200, overlap_tokens: int = 20) -> list[tuple[int, int]]:
    """Cut a text where a reader would pause, into pieces that the model reads whole.

    A cut falls behind a paragraph if one ends in the second half of the room, else behind a line or sentence, else
    behind a word. Only where a sentence had to be cut does the next piece begin up to `overlap_tokens` earlier.
    Costs about 1 s a megabyte, so a long text belongs in a thread.

    Args:
        text: of any length; memory does not grow with it.
        max_tokens: word pieces in a chunk, 32 to 254; a word that alone has more (up to 100) makes a longer chunk.

    Returns:
        [start, end) in characters, in order, without white space at the ends; together they hold every word.
    """
    if not 32 <= max_tokens <= MODEL_PIECES - 2:
        raise ValueError(f"max_tokens must be 32 to {MODEL_PIECES - 2}, got {max_tokens}")
    spans: list[tuple[int, int]] = []
    clean = _without_surrogates(text)
    for start, stop in _blocks(clean):
        spans += _cut_block(clean, start, stop, max_tokens, min(overlap_tokens, max_tokens // 4))
    return spans


_SPACE = r"[^\S\x0b\x0c\x1c-\x1f\x85]"  # white space as the tokenizer sees it: it drops these, and joins the words
_PAUSES = (  # best place first; the first two end a thought
    re.compile(rf"\n[ \t\r]*\n{_SPACE}*"),
    re.compile(rf"\n{_SPACE}*|(?<=[.!?]){_SPACE}+|(?<=[\u3002\uff01\uff1f])"),  # the last: 。 and wide ! and ?
    re.compile(rf"{_SPACE}+"),
)


def _last_pause(text: str, start: int, stop: int) -> tuple[int, bool] | None:
    """Where in (start, stop] to cut, and whether a thought ends there; None: there is no white space."""
    for rank, pause in enumerate(_PAUSES):
        cut = max((match.end() for match in pause.finditer(text, start, stop)), default=start)
        if cut > start:
            return cut, rank < 2
    return None


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        stop = min(start + BLOCK_CHARS, len(text))
        if stop < len(text) and (pause := _last_pause(text, start + BLOCK_CHARS // 2, stop)):
            stop = pause[0]
        yield start, stop
        start = stop


def _cut_block(text: str, start: int, stop: int, max_tokens: int, overlap_tokens: int) -> Iterator[tuple[int, int]]:
    encoding = _encoded(text[start:stop])
    starts = [start + left for left, _ in encoding.offsets]  # of every word piece
    words = cast(list[int], encoding.word_ids)  # piece -> number of its word; None is for [CLS] and such
    first = 0
    while first + max_tokens < len(starts):
        over = first + max_tokens  # the first piece that no longer fits
        pause = _last_pause(text, starts[first + max_tokens // 2], starts[over])
        cut, ends_thought = pause or (_whole_word(starts, words, first, over, stop), False)
        yield _trimmed(text, starts[first], cut)
        begin, first = first, bisect_left(starts, cut)
        if not ends_thought:
            again = bisect_left(words, words[max(first - overlap_tokens, 0)])
            first = again if again > begin else first
    if first < len(starts):
        yield _trimmed(text, starts[first], stop)


def _whole_word(starts: list[int], words: list[int], first: int, over: int, stop: int) -> int:
    """Where to cut without a pause: a word cut in two is other pieces, maybe more of them, so the whole word moves on;
    one that fills the chunk stays."""
    cut = bisect_left(words, words[over])
    if cut <= first:
        cut = bisect_right(words, words[over])
    return starts[cut] if cut < len(starts) else stop


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    piece = text[start:stop]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


async def serve_embeddings(embedder: Embedder, socket_path: str | Path) -> None:
    """Answer OpenAI's /v1/embeddings on a unix socket that only this user can open, until cancelled.

    A socket left behind by a process that died is replaced. Raises OSError where the path is longer than 107 bytes
    or its folder cannot be written.
    """
    import uvicorn  # the processes that only ask do not need it

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # signals belong to the process that we are a guest in

    config = uvicorn.Config(
        embeddings_app(embedder),
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        timeout_keep_alive=3600,  # longer than a client keeps a connection: no request meets a closing one
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    with _listening(Path(socket_path)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await asyncio.wait([serving])


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def embeddings_app(embedder: Embedder) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI callable with one endpoint, POST /v1/embeddings; input is a string or a list of strings."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if (scope["method"], scope["path"]) != ("POST", "/v1/embeddings"):
            return await _reply(send, 404, {"error": {"message": "only POST /v1/embeddings is here"}})
        try:
            texts, as_base64 = _read_question(await _body(receive))
        except ValueError as error:
            return await _reply(send, 400, {"error": {"message": str(error), "type": "invalid_request_error"}})
        try:
            rows = await embedder.embed(texts)
        except ModelError as error:
            return await _reply(send, 503, {"error": {"message": str(error), "type": "server_error"}})
        return await _reply(send, 200, _render_answer(rows, embedder.name, as_base64))

    return app


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        body += event.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"the body is over {MAX_BODY_BYTES:,} bytes")
        if event["type"] == "http.disconnect" or not event.get("more_body"):
            return bytes(body)


async def _reply(send: Send, status: int, content: object) -> None:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _read_question(body: bytes) -> tuple[list[str], bool]:
    question = orjson.loads(body)  # JSONDecodeError is a ValueError
    texts = question.get("input") if isinstance(question, dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or len(texts) > MAX_TEXTS or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"input must be a string or a list of at most {MAX_TEXTS:,} strings")
    return texts, question.get("encoding_format") == "base64"


def _render_answer(rows: NDArray[np.float32], model: str, as_base64: bool) -> dict[str, object]:
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row,
        }
        for index, row in enumerate(rows)
    ]
    return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


def _read_answer(body: bytes, count: int) -> NDArray[np.float32]:
    """(count, width) float32 in the order asked for; numbers or base64 of little-endian float32."""
    try:
        data = sorted(orjson.loads(body)["data"], key=lambda entry: entry["index"])
        rows = np.array([_read_vector(entry["embedding"]) for entry in data], dtype=np.float32)
        if rows.ndim != 2 or len(rows) != count:
            raise ValueError(f"shape {rows.shape} for {count} texts")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the embedder's answer cannot be read: {error}") from error
    return rows


def _read_vector(value: str | list[float]) -> NDArray[np.float32]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
    return np.asarray(value, dtype=np.float32)


def _unit_length(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise ModelError("the embedder gave a vector without a direction")
    return np.asarray(rows / lengths, dtype=np.float32)


def _embeddings_url(url: str) -> str:
    base = url.rstrip("/")
    if base.endswith("/embeddings"):
        return base
    return f"{base}/embeddings" if urlsplit(base).path.strip("/") else f"{base}/v1/embeddings"


def _without_surrogates(text: str) -> str:
    """JSON may hold half a surrogate pair, no tokenizer takes one; each becomes `?`, so positions stay."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _encoded(text: str) -> "Encoding":
    return _tokenizer().encode(_without_surrogates(text), add_special_tokens=False)


@cache
def _tokenizer() -> "Tokenizer":
    from tokenizers import Tokenizer  # 15 MB with its vocabulary: only for the process that embeds

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening unix socket at `path`, mode 0600 from the first moment on, taken away at the end."""
    fresh = path.with_name(path.name + "~")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        listener.listen(128)
        ours = fresh.stat().st_ino
        fresh.rename(path)  # replaces what a dead process left
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == ours:  # a successor may have put its own there
                    path.unlink()
