"""Messages to items: what shrinks together, stays together."""

from collections.abc import Sequence

from memory.messages import Message
from memory.types import Item

RESULT_ROLES = frozenset({"tool", "function"})


def segment(messages: Sequence[Message], tokens: Sequence[int]) -> tuple[Item, ...]:
    """Cut a line into items. A call and its results are one; a result without a call joins what stands before it.

    Where somebody spoke before a result came, as some APIs allow, that is a part of the item, too.
    """
    items: list[Item] = []
    called: dict[str, int] = {}  # where a call was made last
    for position, message in enumerate(messages):
        for call in message.calls:
            called[call.id] = position
        if message.role in RESULT_ROLES and items:
            ids = (message.call_id or "", *message.more_call_ids)
            begin = min(items[-1].start, *(called.get(id, position) for id in ids))
            size = tokens[position]
            while items and items[-1].stop > begin:
                last = items.pop()
                size += last.tokens
            items.append(Item(last.start, position + 1, "exchange" if messages[last.start].calls else last.kind, size))
        else:
            kind = "exchange" if message.calls else message.role
            items.append(Item(position, position + 1, kind, tokens[position]))
    return tuple(items)
