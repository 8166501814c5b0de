"""The part of a long text that says most about a query: neighbouring lines, never half of one."""

import re
from collections.abc import Callable, Mapping

from memory.lexical import terms

# A line, or a stretch of a longer one that ends between words where it can.
UNIT = re.compile(r"[^\n]{0,400}\n|[^\n]{1,400}(?:\s|$)|[^\n]{1,400}")
SEEN_CHARS = 100_000  # of a longer text only what lies around its rarest term is looked at
SOUGHT_TERMS = 8  # rarest terms that are tried for that


def excerpt(text: str, weights: Mapping[str, float], budget_tokens: int, count: Callable[[str], int]) -> range:
    """Find the neighbouring lines that hold most of a query's terms.

    Args:
        weights: worth of each term of the query; others are worth nothing.
        count: text to tokens.

    Returns:
        The characters, at most `budget_tokens` of them; empty if not one line fits. Where nothing speaks for one
        place, it is the beginning.
    """
    first = seen_from(text, weights)
    units = [(unit.start(), unit.end()) for unit in UNIT.finditer(text, first, min(len(text), first + SEEN_CHARS))]
    tokens = [count(text[start:stop]) for start, stop in units]
    worth = [worth_of(text[start:stop], weights) for start, stop in units]
    best, best_worth = range(0), -1.0
    begin, used, held = 0, 0, 0.0
    for end in range(len(units)):
        used += tokens[end]
        held += worth[end]
        while used > budget_tokens:
            used -= tokens[begin]
            held -= worth[begin]
            begin += 1
        if begin <= end and held > best_worth + 1e-9:
            best, best_worth = range(units[begin][0], units[end][1]), held
    return best if best_worth > 0 else head(units, tokens, budget_tokens)


def worth_of(text: str, weights: Mapping[str, float]) -> float:
    return sum(weights.get(term, 0.0) for term in terms(text).counts)


def head(units: list[tuple[int, int]], tokens: list[int], budget_tokens: int) -> range:
    stop = units[0][0] if units else 0
    for (_, end), cost in zip(units, tokens, strict=True):
        budget_tokens -= cost
        if budget_tokens < 0:
            break
        stop = end
    return range(units[0][0], stop) if units else range(0)


def seen_from(text: str, weights: Mapping[str, float]) -> int:
    """Where to begin reading a text that is too long to read."""
    if len(text) <= SEEN_CHARS:
        return 0
    folded = text.lower()
    for term in sorted(weights, key=lambda t: -weights[t])[:SOUGHT_TERMS]:
        at = folded.find(term)
        if at >= 0:
            return max(0, text.rfind("\n", 0, max(1, at - SEEN_CHARS // 2)) + 1, at - SEEN_CHARS)
    return 0
