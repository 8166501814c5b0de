"""Content blocks of the Messages API, as far as they differ from the parts of other dialects. For looking.

What the model reads as text becomes text, calls become calls, pictures and files media. What only the provider can
read (thinking, encrypted results of its own tools) is estimated, and takes no part in what makes a message this one.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

import msgspec
from msgspec import Raw

from memory.messages import DIGEST_BYTES, Media, ToolCall
from proxy.wire import images
from proxy.wire.slices import few

CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
MEDIA = frozenset({"image", "document", "container_upload"})
THOUGHTS = frozenset({"thinking", "redacted_thinking"})
RESULT = "tool_result"  # of a tool that the client runs; all other `..._tool_result` are of the provider's own
TOLD = frozenset(
    "search_result compaction fallback tool_reference browser_state mcp_tool_listing tool_addition tool_removal".split()
)

# Under these keys stands what the model reads of a provider's results; under others ids, offsets and ciphers.
READABLE = frozenset(
    ("text", "stdout", "stderr", "title", "url", "source", "content", "tool_name", "name", "description", "error_code")
)
BYTES_A_TOKEN = 3  # of text that is not counted but estimated
BASE64_A_TOKEN = 4  # characters of base64 for those bytes
PDF_A_TOKEN = 25  # characters of base64, see `memory.tokens`


class Block(msgspec.Struct):
    """A content block, as much of it as is looked at."""

    type: str
    id: str | None = None
    name: str | None = None
    input: Raw = Raw(b"{}")
    tool_use_id: str | None = None
    content: Raw = Raw(b"null")
    source: Raw = Raw(b"null")
    file_id: str | None = None
    title: str | None = None
    context: str | None = None
    thinking: str = ""
    signature: str | None = None
    data: str = ""


class Source(msgspec.Struct):
    """Where a picture or document comes from."""

    type: str = ""
    media_type: str = ""
    data: str = ""
    url: str = ""
    file_id: str = ""
    content: Raw = Raw(b"null")


class Blocks:
    """Reads the blocks of one message, and gathers what is neither text nor media."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.results: list[str] = []  # the calls that results answer
        self.unseen = 0  # tokens, about
        self.has_more = False  # something stands beside results

    def read(self, kind: object, raw: bytes) -> Sequence[str | Media] | None:
        """What a block says, in order; None: it is none of this dialect's, or malformed."""
        if not isinstance(kind, str) or not is_block(kind):
            return None
        if kind in TOLD or (kind.endswith("_" + RESULT)):
            return self._told(raw)
        try:
            block = _BLOCK.decode(raw)
            return self._read(block)
        except msgspec.ValidationError:
            return None

    def _read(self, block: Block) -> Sequence[str | Media]:
        if block.type in CALLS:
            self.calls.append(ToolCall(block.id or "", block.name or "", bytes(block.input).decode()))
            return ()
        if block.type in THOUGHTS:
            ciphers = len(block.signature or block.data) // BASE64_A_TOKEN
            self.unseen += max(len(block.thinking.encode()) // BYTES_A_TOKEN, ciphers)
            return ()
        if block.type == RESULT:
            found = self._inner(block.content)
            self.results.append(block.tool_use_id or "")
            return found
        if block.type == "image":
            return (picture(_SOURCE.decode(block.source)),)
        if block.type == "document":
            return [*filter(None, (block.title, block.context)), *self._document(block.source)]
        return (Media("file", digest((block.file_id or "").encode()), size=0),)

    def _inner(self, content: Raw) -> Sequence[str | Media]:
        """The content of a result or a document: a string, or blocks."""
        raw = bytes(content)
        if raw.startswith(b'"'):
            return (_STRING.decode(raw),)
        found: list[str | Media] = []
        for part in few(_ARRAY.decode(raw) or []):
            kind, text = _kind_and_text(bytes(part))
            read = (text,) if kind == "text" and text is not None else self.read(kind, bytes(part))
            found += (Media("file", digest(plainly(bytes(part))), size=len(bytes(part))),) if read is None else read
        return found

    def _document(self, source: Raw) -> Sequence[str | Media]:
        given = _SOURCE.decode(source)
        if given.type == "text":
            return (given.data,)
        if given.type == "content":
            return self._inner(given.content)
        return (Media("file", digest((given.data or given.url or given.file_id).encode()), size=len(given.data)),)

    def _told(self, raw: bytes) -> Sequence[str]:
        """What a provider's own tool found: the words in it; the rest is estimated."""
        value = msgspec.json.decode(raw)
        self.unseen += sum(ciphers(value))
        return tuple(words(value))


def is_block(kind: str) -> bool:
    """Is it a block that only this dialect has?"""
    return kind in CALLS or kind in MEDIA or kind in THOUGHTS or kind in TOLD or kind.endswith(RESULT)


def picture(source: Source) -> Media:
    """A picture, with its size where its bytes are here. Its tokens go by its area."""
    if source.type == "base64":
        width, height = images.size(f"data:{source.media_type};base64,{source.data}") or (None, None)
        return Media("image", digest(source.data.encode()), width, height, "area")
    return Media("image", digest((source.url or source.file_id).encode()), detail="area")


def words(value: object, key: str = "") -> Iterator[str]:
    """The texts in a block, whatever its shape; in the order of its keys, because providers and SDKs differ in theirs.

    >>> list(words({"type": "x", "content": [{"url": "u", "title": "t", "encrypted_content": "A"}]}))
    ['t', 'u']
    """
    if isinstance(value, str):
        if value and key in READABLE:
            yield value
    elif isinstance(value, Mapping):
        if value.get("type") == "text" and isinstance(value.get("data"), str):
            yield value["data"]
        for name in sorted(value):
            yield from words(value[name], name)
    elif isinstance(value, list):
        for item in value:
            yield from words(item, key)


def ciphers(value: object, key: str = "") -> Iterator[int]:
    """Tokens, about, of what stands in a block in a form that only the provider reads."""
    if isinstance(value, str):
        if key.startswith("encrypted"):
            yield len(value) // BASE64_A_TOKEN
        elif key == "data":
            yield len(value) // PDF_A_TOKEN
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if not (name == "data" and value.get("type") == "text"):
                yield from ciphers(inner, name)
    elif isinstance(value, list):
        for item in value:
            yield from ciphers(item)


def plainly(raw: bytes) -> bytes:
    """JSON without cache marks, nulls, spacing and an order of keys: SDKs and providers differ in them."""
    return msgspec.json.encode(bare(msgspec.json.decode(raw), "cache_control"), order="sorted")


def bare(value: object, without: str | None = None) -> object:
    """JSON without members that are null, which some clients write and others leave out, or have one name."""
    match value:
        case dict():
            return {key: bare(one, without) for key, one in value.items() if one is not None and key != without}
        case list():
            return [bare(one, without) for one in value]
    return value


def digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=DIGEST_BYTES).digest()


def _kind_and_text(raw: bytes) -> tuple[object, str | None]:
    part = _TEXT.decode(raw)
    return part.type, part.text if isinstance(part.text, str) else None


class _Text(msgspec.Struct):
    type: object = None
    text: object = None


_TEXT = msgspec.json.Decoder(_Text)
_BLOCK = msgspec.json.Decoder(Block)
_SOURCE = msgspec.json.Decoder(Source)
_STRING = msgspec.json.Decoder(str)
_ARRAY = msgspec.json.Decoder(list[Raw] | None)
