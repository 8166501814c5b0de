"""API key -> tenant. Where that is uncertain, memory is neither read nor written."""

from collections.abc import Sequence

from memory.identify import SESSION_NAME, is_nobodys, key_tenant

KEY_HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key"))


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
    return None if is_nobodys(key) and not is_loopback else key_tenant(pepper, key)


def session_label(header: bytes | None) -> str | None:
    """X-Session-Id where it is well formed; None else."""
    name = (header or b"").decode("latin-1")
    return name if SESSION_NAME.fullmatch(name) else None
