"""What may be learnt from: why a message may not, how much is in it, and when there is enough of it. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from memory.detect import secrets_in
from memory.digest.facts import facts
from memory.settings import Learning

MOST_IMPORTANCE = 10

Why = Literal["conversations", "hours", "importance"]


class Reason(StrEnum):
    """Why a message is not learnt from; the values are those of `infold.samples.reason`."""

    NONE = ""
    QUARANTINED = "quarantined"  # it is held, or was
    SECRET = "secret"  # a detector found a key in it
    PROVIDER = "provider"  # whose outputs may not train other models, or nobody knows who answered
    TOOL = "tool"  # what a tool brought was written by strangers
    EMPTY = "empty"  # no words


def reason(role: str, text: str, held: bool, upstreams: Sequence[str], trainable: Collection[str]) -> Reason:
    """Why a message may not be learnt from; NONE: it may.

    Args:
        held: it is in quarantine.
        upstreams: that gave this answer, as its turns tell; none where the client brought it along.
        trainable: upstreams whose outputs may train other models.
    """
    if held:
        return Reason.QUARANTINED
    if role not in ("user", "assistant"):
        return Reason.TOOL
    if not text.strip():
        return Reason.EMPTY
    if secrets_in(text):
        return Reason.SECRET
    if role == "assistant" and not (upstreams and set(upstreams) <= set(trainable)):
        return Reason.PROVIDER
    return Reason.NONE


def importance(text: str) -> int:
    """How many facts a message tells: names, numbers, dates, decisions; at most 10."""
    return min(len(facts(text)), MOST_IMPORTANCE)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What may be learnt from and came since the last training."""

    samples: int
    conversations: int
    importance: int
    since: datetime  # of that training, or of the first sample


def due(learning: Learning, waiting: Waiting, now: datetime) -> Why | None:
    """Why a training is to begin by itself; None: it is not."""
    if learning.trigger == "manual" or waiting.samples < learning.least_samples:
        return None
    if learning.trigger == "adaptive":
        return "importance" if waiting.importance >= learning.importance else None
    if waiting.conversations >= learning.conversations:
        return "conversations"
    return "hours" if now - waiting.since >= timedelta(hours=learning.hours) else None
