"""Keys and private keys in a text, by their shape. Nothing here is quoted elsewhere: a finding is a kind and a place.

Time grows with the length of the text alone: each pattern begins with fixed letters, and no run of characters is read
more than three times.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Found(NamedTuple):
    kind: str
    start: int  # characters
    stop: int


class Shape(NamedTuple):
    kind: str
    begins: str  # every one begins with it
    pattern: re.Pattern[str]
    is_one: Callable[[str], bool]


LONG_RUN = 40  # letters of base64 in one go: a private key has such lines, words about one do not
RUN = re.compile(r"[A-Za-z0-9+/=]+")
BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


def always(text: str) -> bool:
    return True


def looks_drawn(text: str) -> bool:
    """Letters and digits, as a generator draws them; not words with hyphens between them."""
    return bool(re.search(r"[0-9]", text) and re.search(r"[A-Za-z]", text)) and len(set(text)) >= 10


def shape(kind: str, begins: str, rest: str, is_one: Callable[[str], bool] = looks_drawn) -> Shape:
    """`begins` stands where no word is being written; the look back comes after it, so that the search stays fast."""
    start = re.escape(begins)
    return Shape(kind, begins, re.compile(f"{start}(?<![A-Za-z0-9]{start}){rest}"), is_one)


SHAPES = (
    shape("anthropic key", "sk-ant-", r"[A-Za-z0-9_-]{20,}"),
    shape("openai key", "sk-", r"(?!ant-)[A-Za-z0-9_-]{20,}"),
    shape("aws key", "AKIA", r"[0-9A-Z]{16}(?![0-9A-Za-z])"),
    shape("aws key", "ASIA", r"[0-9A-Z]{16}(?![0-9A-Za-z])"),
    shape("aws key", "aws_secret_access_key", r"[\"']?\s{0,3}[=:]\s{0,3}[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"),
    shape("aws key", "AWS_SECRET_ACCESS_KEY", r"[\"']?\s{0,3}[=:]\s{0,3}[\"']?[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"),
    shape("github token", "gh", r"[pousr]_[A-Za-z0-9]{36,255}(?![A-Za-z0-9])"),
    shape("github token", "github_pat_", r"[A-Za-z0-9_]{22,255}"),
    shape("gitlab token", "glpat-", r"[A-Za-z0-9_-]{20,}"),
    shape("slack token", "xox", r"[abeoprs]-[A-Za-z0-9-]{10,}"),
    shape("slack token", "xapp-", r"[A-Za-z0-9-]{10,}"),
    shape("slack token", "https://hooks.slack.com/services/", r"T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}", always),
    shape("google key", "AIza", r"[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])"),
    shape("stripe key", "sk_live_", r"[0-9A-Za-z]{20,}"),
    shape("stripe key", "rk_live_", r"[0-9A-Za-z]{20,}"),
    shape("hugging face token", "hf_", r"[A-Za-z]{30,}(?![A-Za-z0-9_])", lambda text: len(set(text)) >= 15),
    shape("npm token", "npm_", r"[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    shape("sendgrid key", "SG.", r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"),
    shape("jwt", "eyJ", r"(?<![A-Za-z0-9_-]eyJ)[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", always),
    shape("bearer", "earer ", r"[A-Za-z0-9._~+/-]{24,}={0,2}"),
    shape("bearer", "EARER ", r"[A-Za-z0-9._~+/-]{24,}={0,2}"),
)


def secrets_in(text: str) -> tuple[Found, ...]:
    """What looks like a secret, in the order of the text; of two that overlap the one that begins first.

    >>> [found.kind for found in secrets_in("key: AKIAQ3EGRN5X7T2MPLWD")]
    ['aws key']
    """
    found = sorted([*keys(text), *private_keys(text)], key=lambda one: (one.start, -one.stop))
    apart: list[Found] = []
    for one in found:
        if not apart or one.start >= apart[-1].stop:
            apart.append(one)
    return tuple(apart)


def keys(text: str) -> Iterator[Found]:
    for kind, begins, pattern, is_one in SHAPES:
        if begins in text:
            for match in pattern.finditer(text):
                if is_one(match[0][len(begins) :]):
                    yield Found(kind, match.start(), match.end())


def private_keys(text: str) -> Iterator[Found]:
    """Armoured private keys, also such as lost their end; a header without a key behind it is none."""
    for header in BEGIN.finditer(text) if "-----BEGIN " in text else ():
        stop = text.find("-----", header.end())
        body = text[header.end() : stop if stop >= 0 else len(text)]
        if any(len(run) >= LONG_RUN for run in RUN.findall(body)):
            end = stop if stop >= 0 else header.end() + len(body)
            close = text.find("-----", end + 5, end + 60) if text.startswith("-----END", end) else -1
            yield Found("private key", header.start(), close + 5 if close >= 0 else end)
