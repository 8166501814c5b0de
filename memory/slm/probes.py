"""What is asked of an engine to see how it counts: a few texts, and a few short conversations."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Messages = Sequence[dict[str, str]]

# Each kind of text whose tokens differ most from one vocabulary to the next.
PROBES = (
    "The ferry to Håkøya leaves at half past seven; she said she wouldn't wait, although it rained. And you?",
    "def total(rows: list[dict]) -> float:\n    return sum(row['price'] * row[\"count\"] for row in rows)  # in €\n\n",
    '{"id": 1048576, "at": "2026-11-23T17:40:14.250Z", "ratio": 0.0625, "tags": [], "path": "/var/lib/a-b_c.d"}',
    "2026-11-23 17:40:14,250 ERROR [worker-17] 0x7f3a9c004b20 timeout after 30000 ms (attempt 3/5)\r\n\t\tat x.y.Z\r\n",
    "Паром отходит в половине восьмого. 渡轮七点半出发。フェリーは七時半に出ます。العبّارة تغادر الساعة السابعة والنصف.",
    "🙂👩‍👩‍👧 1️⃣ ½ Ⅷ ١٢٣ １２３ \u00a0\u200b … — “quoted” 'SHOUT'LL' `x`  \n\n\n   indented\n",  # noqa: RUF001
)


class Frame(NamedTuple):
    """Tokens that a chat template adds, at the most."""

    message: int  # to each message
    reply: int  # once: what comes before and after all of them


def frame(tokens: Callable[[str], int], prompt: Callable[[Messages], int | None]) -> Frame | None:
    """How much a chat template adds, measured on the shortest conversations. None: it takes none.

    Args:
        tokens: of a text alone.
        prompt: tokens of a conversation as the model sees it; None: the template refuses it.
    """
    word = tokens("x")

    def added(*roles: str) -> int | None:
        counted = prompt([{"role": role, "content": "x"} for role in roles])
        return None if counted is None else counted - len(roles) * word

    alone, longer = added("user"), added("user", "assistant", "user")
    if alone is None or longer is None:
        return None
    both, twice = longer - alone, added("user", "user")
    user = -(-both // 2) if twice is None else twice - alone  # a template that wants turns: half of both
    message = max(user, both - user, 0)
    begun = [(1, alone), (2, added("system", "user"))]
    return Frame(message, max(0, *(total - count * message for count, total in begun if total is not None)))
