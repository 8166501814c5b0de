"""What an operator may turn, with units, ranges and defaults; `proxy.yaml` explains each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
class Strategies:
    """How far stored items are compressed; the three are shares of an item's tokens."""

    aggressive: float = 0.10
    balanced: float = 0.25
    conservative: float = 0.50
    most_share: float = 1 / 160  # share of the window that the digest of one item may have
    target: float = 0.20  # share of the window that a session's items have once the trigger is passed
    long_tokens: int = 2_000  # an item above it gets a digest when it is added


@dataclass(frozen=True, slots=True)
class Hygiene:
    schedule: str = "17 3 * * *"  # cron, UTC; "": only on call
    compress_after_days: float = 7  # since it was last read
    archive_after_days: float = 30  # since it was stored, where nobody reads it
    delete_after_days: float | None = None  # since it was stored; None: never
    max_compressed_items: int = 1_000  # in a session's prompt; more leave it, search finds them
    every_items: int = 100  # added to a session since the last time; 0: only by schedule


@dataclass(frozen=True, slots=True)
class Summaries:
    by: Literal["digest", "upstream", "local"] = "digest"
    model: str = ""  # "": the provider's small one


@dataclass(frozen=True, slots=True)
class Work:
    human_expiry_hours: float = 24  # after which a question to a human expires
    most_item_bytes: int = 64 * 2**20 - 1024  # of an item's content in UTF-8: a request of 64 MiB can bring it


@dataclass(frozen=True, slots=True)
class Learning:
    """Whether, when and how the local small model learns from conversations."""

    enabled: bool = False  # the operator's word; each tenant has its own beside it
    trigger: Literal["manual", "fixed", "adaptive"] = "manual"
    conversations: int = 25  # with something new, after which `fixed` trains
    hours: float = 24  # since the last training, after which `fixed` trains all the same
    importance: int = 500  # facts in what is new, from which on `adaptive` trains
    least_samples: int = 50  # messages that may be learnt from, below which nothing is trained
    most_seconds: float = 3600  # of a training's steps, 0: no limit
    most_memory_mb: int = 0  # of the process that trains, 0: no limit
    canary_share: float = 0.1  # of questions that a new adapter answers while it is on trial, 0-1
    canary_answers: int = 20  # of those, after which it is used for all
    recipe: Mapping[str, Any] = field(default_factory=dict)  # of `slm.recipe`; what is not named has its default
    trainable: frozenset[str] = frozenset()  # upstreams whose outputs may train other models


@dataclass(frozen=True, slots=True)
class Slm:
    """The local small model, and who runs it."""

    backend: Literal["none", "openai", "llamacpp", "transformers"] = "none"
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"  # a name of the registry, a folder, or a .gguf file
    url: str | None = None  # of `openai`: an engine that runs elsewhere
    name: str | None = None  # as the engine calls it; None: by `model`
    key: str | None = field(default=None, repr=False)  # that it wants, and by which ours lends adapters
    window: int | None = None  # tokens; None: the model's own
    threads: int = 1  # that it computes with, 1-64
    quantization: Literal["none", "8bit", "4bit"] = "none"  # of `transformers`; a .gguf file has its own
    learning: Learning = Learning()


@dataclass(frozen=True, slots=True)
class Settings:
    compression: Compression = Compression()
    recall: Recall = Recall()
    strategies: Strategies = Strategies()
    hygiene: Hygiene = Hygiene()
    summaries: Summaries = Summaries()
    work: Work = Work()
    slm: Slm = Slm()
    recall_tool: Literal["off", "auto"] = "off"  # whether models may ask for what was folded
    quarantine: Literal["off", "suggest", "auto"] = "suggest"  # what happens to secrets that a detector finds
