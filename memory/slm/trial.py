"""How an adapter does at work: whether a canary is promoted, and whether one in use goes back. Pure.

What counts is whether an answer held: whether the passages that were read hold all that it says.
"""

import math
from dataclasses import dataclass
from typing import Literal

WINDOW = 200  # newest answers that are looked at
FEWEST = 10  # answers, below which nothing is said
DOUBT = 1.645  # standard deviations below, from where on it is no accident: one in twenty

Step = Literal["wait", "promote", "withdraw"]


@dataclass(frozen=True, slots=True)
class Record:
    """What became of the newest answers of a reader, the newest last: 1 held, 0 did not."""

    recent: str = ""

    @property
    def asked(self) -> int:
        return len(self.recent)

    @property
    def share(self) -> float:
        """Of answers that held; 0 for none."""
        return self.recent.count("1") / max(self.asked, 1)

    def last(self, many: int) -> "Record":
        return Record(self.recent[-many:])


def worse(now: Record, before: float) -> bool:
    """Whether so few answers hold that it is no accident, where a share `before` of them did.

    >>> worse(Record("1" * 15 + "0" * 5), 0.8), worse(Record("1" * 10 + "0" * 10), 0.8)
    (False, True)

    A one-sided test by the normal approximation of the binomial distribution.
    """
    expected = now.asked * before
    spread = math.sqrt(max(expected * (1 - before), 1.0))  # one answer more or less is always an accident
    return now.asked >= FEWEST and now.recent.count("1") < expected - DOUBT * spread


def canary_step(canary: Record, before: Record, answers: int) -> Step:
    """What becomes of a canary beside the reader that is in use.

    Args:
        answers: of the canary's, after which it is promoted where it is not worse.
    """
    if before.asked < min(FEWEST, answers):
        return "wait"
    if worse(canary, before.share):
        return "withdraw"
    return "promote" if canary.asked >= answers else "wait"


def fails(active: Record, standard: float | None) -> bool:
    """Whether an adapter in use has become worse than what there was when it was promoted."""
    return standard is not None and worse(active.last(50), standard)
