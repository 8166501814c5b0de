"""One text made shorter, by its kind."""

from typing import assert_never

from memory.digest.data import shorten_json
from memory.digest.fit import CountTokens, clean, excerpt, fits, trim
from memory.digest.ledger import Ledger
from memory.digest.log import shorten_log
from memory.digest.other import shorten_other
from memory.digest.pick import Kind, pick
from memory.digest.prose import shorten_prose
from memory.digest.values import FactKind

FACTS_SHARE = 0.2  # of the budget, for what the kept part does not show; it takes what the kept part leaves, too


def shorten(text: str, budget_tokens: int, count: CountTokens, kind: Kind | None = None) -> str:
    """A text in at most `budget_tokens`, in the way of its kind; a text that fits is returned as it is.

    Only whole units are kept: sentences, rows, lines. What they do not show stands in lines of facts, where there
    is room. May be "" when not even one unit fits.
    """
    if fits(text, budget_tokens, count):
        return text
    if budget_tokens <= 0:
        return ""
    kind = kind or pick(text)
    told = kept(text, int(budget_tokens * (1 - FACTS_SHARE)), count, kind)
    ledger = Ledger()
    ledger.enter("", excerpt(clean(text)))
    room = budget_tokens - count(told) - 1
    times = FactKind.DATE.value if kind is Kind.LOG else ""  # each line of a log has one
    return trim([told, *ledger.lines(told, room, count, without=times)], budget_tokens, count)


def kept(text: str, budget_tokens: int, count: CountTokens, kind: Kind) -> str:
    """The part that stays as it was."""
    match kind:
        case Kind.JSON:
            told = shorten_json(text, budget_tokens, count)
            return shorten_other(text, budget_tokens, count) if told is None else told
        case Kind.LOG:
            return shorten_log(text, budget_tokens, count)
        case Kind.PROSE:
            return shorten_prose(text, budget_tokens, count) or shorten_other(text, budget_tokens, count)
        case Kind.OTHER:
            return shorten_other(text, budget_tokens, count)
        case _:
            assert_never(kind)
