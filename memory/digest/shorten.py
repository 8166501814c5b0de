"""One text made shorter, by its kind."""

from typing import assert_never

from memory.digest.data import shorten_json
from memory.digest.facts import facts_line
from memory.digest.fit import CountTokens, clean, excerpt, fits, trim
from memory.digest.log import shorten_log
from memory.digest.other import shorten_other
from memory.digest.pick import Kind, pick
from memory.digest.prose import shorten_prose

FACTS_SHARE = 0.2  # of the budget, for what the kept sentences do not show


def shorten(text: str, budget_tokens: int, count: CountTokens, kind: Kind | None = None) -> str:
    """A text in at most `budget_tokens`, in the way of its kind; a text that fits is returned as it is.

    Only whole units are kept: sentences, rows, lines. What they do not show stands in a line of facts, where
    there is room. May be "" when not even one unit fits.
    """
    if fits(text, budget_tokens, count):
        return text
    if budget_tokens <= 0:
        return ""
    kind = kind or pick(text)
    match kind:
        case Kind.JSON:
            told = shorten_json(text, budget_tokens, count)
            return told if told is not None else shorten_other(text, budget_tokens, count)
        case Kind.LOG:
            return shorten_log(text, budget_tokens, count)
        case Kind.PROSE:
            told = shorten_prose(text, int(budget_tokens * (1 - FACTS_SHARE)), count)
            line = facts_line(excerpt(clean(text)), told, budget_tokens - count(told) - 2, count)
            return trim([told, line], budget_tokens, count) or shorten_other(text, budget_tokens, count)
        case Kind.OTHER:
            return shorten_other(text, budget_tokens, count)
        case _:
            assert_never(kind)
