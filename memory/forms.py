"""Which form a stored item has in the prompt: whole, its summary, one line, or none.

Pure. The rule depends on what is stored, not on the order in which it came.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from uuid import UUID

from memory.digest.fit import CountTokens
from memory.digest.shorten import shorten
from memory.nouns import ItemForm
from memory.settings import Strategies

HINT_TOKENS = 40  # one line: type, tokens, first words
LEAST_DIGEST_TOKENS = 64
LEAST_TOKENS = 16  # of a text that somebody wants compressed
PREFIX_CHARS = 500
CHARS_A_TOKEN = 4
FULL_ENOUGH = 0.8  # of a budget

# What an item of priority 0 counts as, by its type.
SPOKEN = frozenset({"conversation", "user", "decision", "requirement", "note"})
PRINTED = frozenset({"tool_output", "log", "output", "search_result"})
SPOKEN_PRIORITY, USUAL_PRIORITY, PRINTED_PRIORITY = 4, 3, 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens, of one model."""

    window: int
    trigger: int  # items that have more than this in full are compressed
    target: int  # what they may have in the prompt then
    long: int  # an item above it gets a digest when it is added
    most: int  # of a digest that is stored: some thirty of them fill the target


@dataclass(frozen=True, slots=True)
class Standing:
    """An active item, as the trigger rule sees it."""

    id: UUID
    tokens: int
    summary_tokens: int
    priority: int
    content_type: str
    last_accessed: datetime
    form: ItemForm
    pinned: bool
    yields: bool  # False: its owner switched the rule off for it

    @property
    def rank(self) -> tuple[int, datetime, UUID]:
        """Lower goes first."""
        return effective_priority(self.priority, self.content_type), self.last_accessed, self.id


def sizes(window: int, trigger_share: float, strategies: Strategies) -> Sizes:
    return Sizes(
        window=window,
        trigger=round(trigger_share * window),
        target=round(strategies.target * window),
        long=strategies.long_tokens,
        most=max(LEAST_DIGEST_TOKENS, round(strategies.most_share * window)),
    )


def form_tokens(tokens: int, summary_tokens: int, form: ItemForm) -> int:
    """Prompt tokens of an item in a form; no form has more than the item itself."""
    match form:
        case ItemForm.FULL:
            return tokens
        case ItemForm.SUMMARY:
            return min(tokens, summary_tokens)
        case ItemForm.HINT:
            return min(tokens, HINT_TOKENS)
        case ItemForm.NONE:
            return 0


def effective_priority(priority: int, content_type: str) -> int:
    """1-10 as set; 0 means not set, and the type decides."""
    if priority:
        return priority
    kind = content_type.lower()
    return SPOKEN_PRIORITY if kind in SPOKEN else PRINTED_PRIORITY if kind in PRINTED else USUAL_PRIORITY


def settle(items: Sequence[Standing], stored: int, sizes: Sizes, used: int) -> Mapping[UUID, ItemForm]:
    """The forms that change, so that a session's items have at most `sizes.target` tokens in the prompt.

    Summaries come before hints, and hints before nothing; in each round the least important and longest unread first.
    Pinned items and those whose owner switched the rule off stay, so more than the target can be left.

    Args:
        stored: tokens of all active items in full; while they are within the trigger nothing changes.
        used: tokens of all active items, each in its form.
    """
    changes: dict[UUID, ItemForm] = {}
    if stored <= sizes.trigger or used <= sizes.target:
        return changes
    held = {item.id: (item.form, form_tokens(item.tokens, item.summary_tokens, item.form)) for item in items}
    yielding = sorted((item for item in items if item.yields and not item.pinned), key=lambda item: item.rank)
    for smaller in (ItemForm.SUMMARY, ItemForm.HINT, ItemForm.NONE):
        for item in yielding:
            form, tokens = held[item.id]
            saved = tokens - form_tokens(item.tokens, item.summary_tokens, smaller)
            if form < smaller and saved > 0:
                held[item.id] = smaller, tokens - saved
                changes[item.id] = smaller
                used -= saved
            if used <= sizes.target:
                return changes
    return changes


def budget_tokens(tokens: int, strategy_share: float, most: int | None) -> int:
    """Tokens that a shorter form of a text may have; `most` None: no bound."""
    asked = max(LEAST_TOKENS, ceil(strategy_share * tokens))
    return asked if most is None else min(most, asked)


def prefix_summary(content: str) -> str:
    """The first 500 characters: the summary of an item that has no digest."""
    return content[:PREFIX_CHARS] if content[:PREFIX_CHARS].strip() else content.strip()[:PREFIX_CHARS]


def digest(content: str, budget: int, count: CountTokens) -> str:
    """A text in at most `budget` tokens, never empty: where not one unit fits, the first characters that do."""
    told = shorten(content, budget, count)
    return told if told.strip() else beginning(content, budget, count)


def fill(content: str, budget: int, count: CountTokens) -> str:
    """Like `digest`, for who asks for a share of a text: room that was left for facts and not needed is used, too."""
    told = digest(content, budget, count)
    if count(told) >= FULL_ENOUGH * budget:
        return told
    fuller = shorten(content, round(budget / FULL_ENOUGH), count)
    return fuller if count(fuller) <= budget else told


def beginning(content: str, budget: int, count: CountTokens) -> str:
    """The first characters that have at most `budget` tokens; one at least."""
    text = content.strip()[: budget * CHARS_A_TOKEN]
    while len(text) > 1 and count(text) > budget:
        text = text[: len(text) * 3 // 4]
    return text
