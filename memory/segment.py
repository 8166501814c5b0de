"""Messages to items: what shrinks together, stays together."""

from collections.abc import Sequence

from memory.messages import Message
from memory.types import Item

RESULT_ROLES = frozenset({"tool", "function"})


def segment(messages: Sequence[Message], tokens: Sequence[int]) -> tuple[Item, ...]:
    """Cut a line into items. A call and its results are one; a result without a call joins what stands before it."""
    items: list[Item] = []
    for position, message in enumerate(messages):
        if message.role in RESULT_ROLES and items:
            last = items[-1]
            kind = "exchange" if messages[last.start].calls else last.kind
            items[-1] = Item(last.start, position + 1, kind, last.tokens + tokens[position])
        else:
            kind = "exchange" if message.calls else message.role
            items.append(Item(position, position + 1, kind, tokens[position]))
    return tuple(items)
