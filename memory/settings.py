"""What an operator may turn, with units, ranges and defaults; `proxy.yaml` explains each."""

import re
from dataclasses import dataclass

EMBEDDERS = "builtin, none, or <url>#<model> such as http://tei:8080/v1#all-MiniLM-L6-v2"


def names_embedder(setting: str) -> bool:
    """Is it one of EMBEDDERS?"""
    return setting in ("builtin", "none") or re.fullmatch(r"https?://[^#]+#.+", setting) is not None


@dataclass(frozen=True, slots=True)
class Compression:
    target: float = 0.25  # share of the window that the frozen part has after a rollover, 0.05-0.5
    digest_share: float = 0.35  # of the frozen part beside system prompt and tools, 0-1; the rest is verbatim tail


@dataclass(frozen=True, slots=True)
class Recall:
    max_share: float = 0.6  # share of the window that a re-injected block may have, 0-0.75
    floor: float = 0.08  # relevance below which nothing comes back, 0-1


@dataclass(frozen=True, slots=True)
class Settings:
    compression: Compression = Compression()
    recall: Recall = Recall()
