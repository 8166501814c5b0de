"""Which path of a tenant's tree a request is on.

Each message is hashed with its parent's hash under the tenant's key, so a conversation is a path and
its newest node names all of it. System and developer messages take no part: agents put the clock into them.
"""

import re
import secrets
import time
from base64 import b32decode, b32encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from operator import is_
from uuid import UUID

from memory.errors import InvalidRequest
from memory.messages import DIGEST_BYTES, Message
from memory.nouns import Place

ROOT = b""
SESSION_NAME = re.compile(r"[A-Za-z0-9._:\-]{1,128}")

BLANKS = " \t\n\r\v\f"  # around a key; others are part of it
LOCAL_KEY = ""  # whoever has no key on a loopback listener

# Keys that people write because a client insists on one; they are everybody's.
PLACEHOLDERS = frozenset(
    (
        "empty",
        "none",
        "null",
        "ollama",
        "lm-studio",
        "sk-xxx",
        "sk-no-key-required",
        "no-key",
        "dummy",
        "dummy_key",
        "test",
        "local",
        "not-needed",
        "placeholder",
        "your-api-key",
        "sk-",
        "x",
        "xxx",
        "key",
        "api-key",
    )
)


@dataclass(frozen=True)
class Line:
    """A path through the tree: the request's messages without system messages, and a node for each."""

    messages: tuple[Message, ...]
    nodes: tuple[bytes, ...]  # 16 bytes each; nodes[i] names messages[: i + 1]
    cut: int = 0  # so many of the first messages stand not in the request: the client cut its history

    @property
    def tip(self) -> bytes:
        return self.nodes[-1]

    @cached_property
    def newest_user(self) -> int | None:
        """The position of the newest user message."""
        return newest_user(self.messages)

    @cached_property
    def words_beside(self) -> tuple[int, ...]:
        """Where, since the newest user message, a user has spoken beside results; a request has what the client cut
        no longer."""
        begin = max(self.cut, 0 if self.newest_user is None else self.newest_user + 1)
        return tuple(i for i in range(begin, len(self)) if self.messages[i].has_user_words)

    @cached_property
    def fresh(self) -> int:
        """Where the messages that are new in this request begin."""
        return fresh_from(self.messages)

    def parent(self, position: int) -> bytes | None:
        return self.nodes[position - 1] if position else None

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<Line of {len(self)} messages at {self.tip.hex()[:8] if self.nodes else 'root'}>"


def line(tenant: bytes, messages: Sequence[Message], seen: Line | None = None) -> Line:
    """The path of a request's messages.

    Args:
        tenant: the tenant's 16-byte id.
        seen: an earlier line of the same tenant; where this one goes on from it, its nodes are taken over.
    """
    spoken = tuple(message for message in messages if not message.is_system) or tuple(messages)
    nodes: list[bytes] = []
    if seen is not None and len(seen) <= len(spoken) and all(map(is_, seen.messages, spoken)):
        nodes = list(seen.nodes)
    parent = nodes[-1] if nodes else ROOT
    for message in spoken[len(nodes) :]:
        parent = child(tenant, parent, message)
        nodes.append(parent)
    return Line(spoken, tuple(nodes))


def continued(earlier: Sequence[tuple[bytes, Message]], later: Line) -> Line:
    """A line whose client cut its history, with what it cut off before it: known nodes and their messages."""
    nodes, messages = tuple(node for node, _ in earlier), tuple(message for _, message in earlier)
    return Line(messages + later.messages, nodes + later.nodes, len(earlier))


def child(tenant: bytes, parent: bytes, message: Message) -> bytes:
    return blake2b(parent + message.digest, digest_size=DIGEST_BYTES, key=tenant).digest()


def beginning(tenant: bytes, messages: Sequence[Message]) -> bytes:
    """The first node of a request's line."""
    first = next((message for message in messages if not message.is_system), messages[0])
    return child(tenant, ROOT, first)


def tenant_id(pepper: bytes, api_key: str) -> bytes:
    """A tenant is a keyed hash of the API key: 16 bytes. The key itself is never stored."""
    return blake2b(api_key.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES, key=pepper).digest()


def is_nobodys(key: str | None) -> bool:
    """No key, or one that people write because a client insists on one."""
    bare = (key or "").strip(BLANKS)
    return not bare or bare.lower() in PLACEHOLDERS


def key_tenant(pepper: bytes, key: str | None) -> bytes:
    """The tenant that a key names; nobody's keys name the local one, so listeners that others reach ask before."""
    return tenant_id(pepper, LOCAL_KEY if key is None or is_nobodys(key) else key.strip(BLANKS))


def fingerprint(key: str) -> str:
    """A key as the audit names it: 8 hexadecimal digits."""
    return blake2b(key.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def place(tenant: bytes, name: object = None) -> Place:
    """The session that a tenant names so; None: its default session. Nobody has to look it up.

    Raises:
        InvalidRequest: a name of another shape.
    """
    if name is None:
        name = str(keyed_uuid(tenant, b"", b"default session"))
    if not isinstance(name, str) or not SESSION_NAME.fullmatch(name):
        raise InvalidRequest("session_id must be 1 to 128 characters of A-Z, a-z, 0-9 and . _ : -", "session_id")
    return Place(tenant, name, keyed_uuid(tenant, name.encode(), b"session"))


def keyed_uuid(tenant: bytes, words: bytes, use: bytes) -> UUID:
    """An id that nobody has to look up: of a tenant's words, for one use."""
    return UUID(bytes=blake2b(words, digest_size=16, key=tenant, person=use).digest())


def new_id() -> UUID:
    """A UUID version 7: sorts by time, to a quarter of a microsecond. Source: RFC 9562, sections 5.7 and 6.2, method 3.

    Two events of one millisecond are read in the order in which they happened.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction = rest * 4096 // 1_000_000
    return UUID(int=milliseconds << 80 | 0x7000 << 64 | fraction << 64 | 0b10 << 62 | secrets.randbits(62))


@lru_cache(maxsize=1_000)  # a turn's id is written several times: in headers, log and record
def text_id(node: bytes) -> str:
    """A node as text: 26 characters. A turn is named by the node it asked at."""
    return b32encode(node).decode().rstrip("=").lower()


def node_of(text: str) -> bytes:
    """The node that `text_id` wrote; ValueError for other text."""
    return b32decode(text.upper() + "=" * (-len(text) % 8))


@lru_cache(maxsize=1_000)
def session_id(node: bytes) -> str:
    """A session is named by the node where its line began: 16 characters."""
    return b32encode(node[:10]).decode().lower()


def message_hint(node: bytes) -> str:
    """The id of one message on its line, as it stands in `[#...]`: 8 characters.

    40 bits: a line of 10,000 messages meets a second one of the same id once in 22,000 lines.
    """
    return b32encode(node[:5]).decode().lower()


def stretch_hint(last_node: bytes) -> str:
    """The id of a stretch, from the node of its last message; other bits than that message's own id."""
    return b32encode(last_node[5:10]).decode().lower()


def item_hint(id: UUID) -> str:
    """The id of a stored item as it stands in `[#...]`: 8 characters."""
    return b32encode(id.bytes[-5:]).decode().lower()


def item_tail(hint: str) -> bytes:
    """The last bytes of the item's id that a hint names."""
    return b32decode(hint.upper())


def newest_user(messages: Sequence[Message]) -> int | None:
    """The position of the newest user message."""
    return next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"), None)


def fresh_from(messages: Sequence[Message]) -> int:
    """Where the messages that are new in this request begin: behind the last answer, the newest user message alone."""
    behind_answer = next((i + 1 for i in range(len(messages) - 1, -1, -1) if messages[i].role == "assistant"), 0)
    user = newest_user(messages)
    return max(behind_answer, user) if user is not None else behind_answer
