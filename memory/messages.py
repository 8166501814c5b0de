"""The nouns of a conversation: messages and the request that carries them.

A message is equal to another by content. Ids, parents and times belong to storage. What the client
wrote is kept as `raw` bytes and forwarded from there; everything else is for looking.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

DIGEST_BYTES = 16

SYSTEM_ROLES = frozenset({"system", "developer"})


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    name: str
    arguments: str  # the JSON text that the model wrote; may be invalid JSON


class Media(msgspec.Struct, frozen=True):
    """An image, a sound or a file inside a message."""

    kind: str  # "image", "audio", "file"; "item": something that only the provider reads
    digest: bytes  # BLAKE2b-128 of the data URL, URL or id
    width: int | None = None  # pixels, read from the header bytes of a data URL
    height: int | None = None
    detail: str = "auto"  # "low", "high", "auto"; "area": its tokens go by its pixels
    size: int | None = None  # characters of its data in the request; None: not told apart from the message's others


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    role: str
    text: str  # the text parts, joined by newlines; "" for none
    raw: bytes  # the JSON object as the client wrote it
    name: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None  # `tool_call_id` of a tool's result
    more_call_ids: tuple[str, ...] = ()  # of the other results in the same message
    media: tuple[Media, ...] = ()
    unseen: int = 0  # tokens, about, that only the provider reads: reasoning that is sent back to it
    has_user_words: bool = False  # of a message of results: a user speaks beside them
    digest: bytes = field(init=False)  # BLAKE2b-128 of what makes it this message
    is_system: bool = field(init=False)  # of the system or the developer

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", content_digest(self))
        object.__setattr__(self, "is_system", self.role in SYSTEM_ROLES)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        calls = f", {len(self.calls)} calls" if self.calls else ""
        return f"<Message {self.role}: {len(self.text):,} chars{calls} {self.digest.hex()[:8]}>"


def content_digest(message: Message) -> bytes:
    """Hash what makes a message this message; spacing, key order and unknown fields do not count.

    Text is compared without trailing white space, and null, "" and absent are the same. Arguments of
    tool calls are compared as sorted JSON where they are JSON, else as text.
    """
    facts = (
        message.role,
        message.name or "",
        message.text.rstrip(),
        [(call.id, call.name, canonical_json(call.arguments)) for call in message.calls],
        message.call_id or "",
        [media.digest for media in message.media],
    )
    return blake2b(encode_facts(facts), digest_size=DIGEST_BYTES).digest()


def encode_facts(facts: object) -> bytes:
    try:
        return msgspec.msgpack.encode(facts)
    except UnicodeEncodeError:  # a lone surrogate: legal in JSON, not in UTF-8
        return repr(facts).encode("utf-8", "backslashreplace")


def canonical_json(text: str) -> str:
    """JSON text with sorted keys and no spacing; other text as it is."""
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="sorted").decode()
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text


class ChatRequest(msgspec.Struct, frozen=True):
    """What a client asked, whatever dialect it spoke."""

    model: str
    messages: tuple[Message, ...]  # system messages included, in the client's order
    body: bytes  # as received; forwarded as it is while it fits
    schemas: tuple[bytes, ...] = ()  # raw JSON of tools, functions, response format: they cost tokens, too
    max_output_tokens: int | None = None
    stream: bool = False
    user: str | None = None  # narrows retrieval, never widens it
    span: tuple[int, int] = (0, 0)  # where the message array stands in `body`
    preface: int = 0  # so many of the first messages stand beside the array: `system`, `instructions`
    dialect: str = "chat"  # that the client speaks

    def __repr__(self) -> str:
        return f"<ChatRequest {self.model}: {len(self.messages)} messages, {len(self.body):,} bytes>"


def spoken(message: Message) -> str:
    """A message as text, its calls included."""
    calls = "\n".join(f"{call.name}({call.arguments})" for call in message.calls)
    return f"{message.text}\n{calls}".strip() if calls else message.text


def first_turn(messages: Sequence[Message]) -> int:
    """How many system and developer messages stand at the front."""
    return next((i for i, message in enumerate(messages) if not message.is_system), len(messages))
