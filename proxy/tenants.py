"""API key -> tenant. Where that is uncertain, memory is neither read nor written."""

import re
from collections.abc import Sequence

from memory.identify import tenant_id

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
KEY_HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key"))
SESSION_LABEL = re.compile(rb"[A-Za-z0-9._:\-]{1,128}\Z")


def key_of(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The client's API key; None when it sent none, or sent two that differ."""
    found = set()
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            found.add(value[7:].strip())
        elif name in (b"x-api-key", b"api-key"):
            found.add(value.strip())
    found.discard(b"")
    return found.pop().decode("latin-1") if len(found) == 1 else None


def tenant_of(headers: Sequence[tuple[bytes, bytes]], pepper: bytes, is_loopback: bool) -> bytes | None:
    """The tenant's 16-byte id; None: nobody's, so no memory.

    On a loopback listener a missing or placeholder key is the local tenant: whoever reaches it is at home.
    """
    key = key_of(headers)
    if key is None and any(name in KEY_HEADERS and value.split() not in ([], [b"Bearer"]) for name, value in headers):
        return None  # two keys that differ, or a scheme we do not know
    if key is None or key.lower() in PLACEHOLDERS:
        return tenant_id(pepper, LOCAL_KEY) if is_loopback else None
    return tenant_id(pepper, key)


def session_label(header: bytes | None) -> str | None:
    """X-Session-Id where it is well formed; None else."""
    return header.decode() if header is not None and SESSION_LABEL.match(header) else None
