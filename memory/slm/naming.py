"""How adapters are called in engines. A name says which model, which number, and of whom by a hash alone."""

import hashlib
import re

HASHED = re.compile(r"-a[1-9][0-9]{0,8}-[0-9a-f]{8}")


def adapter_name(base: str, number: int, tenant: bytes) -> str:
    """
    >>> adapter_name("smollm2-135m-instruct", 3, b"tenant")
    'smollm2-135m-instruct-a3-c0b48860'
    """
    return f"{base}-a{number}-{hashlib.blake2b(tenant, digest_size=4).hexdigest()}"


def is_adapter_of(base: str, name: str) -> bool:
    """Whether a name is one of an adapter of a model, there or not.

    >>> is_adapter_of("m", "m-a1-0123abcd"), is_adapter_of("m", "m"), is_adapter_of("m", "other-a1-0123abcd")
    (True, False, False)
    """
    return name.startswith(base) and HASHED.fullmatch(name, len(base)) is not None
