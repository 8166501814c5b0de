"""Logs: lines that say the same are told once, with a count; errors and warnings first."""

import re
from dataclasses import dataclass

from memory.digest.fit import CountTokens, Piece, choose, clean, trim

LINE_CHARS = 4_000  # a longer line is a payload, not a message
VARIABLE = re.compile(r"\d++|\b0x[0-9a-fA-F]++|\"[^\"]*+\"|'[^']*+'")
BAD = re.compile(
    r"\b(?:error|fatal|critical|severe|panic|exception|traceback|fail(?:ed|ure)?|denied|refused|timed? ?out)\b", re.I
)
WARNING = re.compile(r"\bwarn(?:ing)?\b", re.I)
TIME = re.compile(r"(?:\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d(?::\d\d(?:[.,]\d{1,6})?)?")


@dataclass(slots=True)
class Group:
    """Lines with one template."""

    place: int
    first: str
    last: str
    times: int = 1


def shorten_log(text: str, budget_tokens: int, count: CountTokens) -> str:
    """Each kind of line once, whole, with how often and when it came; errors, warnings and rare lines first."""
    groups = group(clean(text))
    head = f"[log: {sum(g.times for g in groups):,} lines, {len(groups):,} kinds]"
    pieces = [Piece(g.place, told(g), worth(g, len(groups))) for g in groups if len(g.first) <= LINE_CHARS]
    chosen = choose(pieces, budget_tokens - count(head) - 1, count)
    while chosen:
        shown = "\n".join([head, *(piece.text for piece in chosen)])
        if count(shown) <= budget_tokens:
            return shown
        chosen.remove(min(chosen, key=lambda piece: piece.worth))
    return trim([head], budget_tokens, count)


def group(text: str) -> list[Group]:
    groups: dict[str, Group] = {}
    for i, line in enumerate(text.splitlines()):
        if not line.strip():
            continue
        template = VARIABLE.sub("#", line[:LINE_CHARS])
        if (known := groups.get(template)) is None:
            groups[template] = Group(i, line.rstrip(), line)
        else:
            known.last = line
            known.times += 1
    return list(groups.values())


def told(group: Group) -> str:
    if group.times == 1:
        return group.first
    last = TIME.search(group.last[:200])
    return f"{group.first} (x{group.times:,}{f', last {last.group()}' if last else ''})"


def worth(group: Group, groups: int) -> float:
    level = 4.0 if BAD.search(group.first) else 2.0 if WARNING.search(group.first) else 0.0
    return level + 1.0 / group.times + 0.5 * (group.place == 0)
