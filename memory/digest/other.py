"""Everything else (code, listings, tables, blobs): the head, the tail, and a line of facts about the middle."""

from memory.digest.facts import facts_line
from memory.digest.fit import CHARS_IN_A_TOKEN, CountTokens, clean, excerpt, to_word_end, to_word_start, trim

HEAD_SHARE, TAIL_SHARE = 0.4, 0.25  # of the budget; the rest is for facts


def shorten_other(text: str, budget_tokens: int, count: CountTokens) -> str:
    """Whole lines from both ends with the gap marked, then facts. One huge line is cut between words."""
    text = clean(text)
    lines = text.splitlines()
    head = take(lines, int(budget_tokens * HEAD_SHARE), count)
    tail = take(lines[len(head) :][::-1], int(budget_tokens * TAIL_SHARE), count)[::-1]
    if not head and not tail:
        shown = ends(text, int(budget_tokens * (HEAD_SHARE + TAIL_SHARE)), count)
    else:
        left = len(lines) - len(head) - len(tail)
        shown = "\n".join([*head, *([f"[... {left:,} lines ...]"] if left else []), *tail])
    room = budget_tokens - count(shown) - 2
    return trim([shown, facts_line(excerpt(text), shown, room, count)], budget_tokens, count)


def take(lines: list[str], budget_tokens: int, count: CountTokens) -> list[str]:
    """The first lines that fit."""
    taken: list[str] = []
    for line in lines:
        if len(line) > budget_tokens * CHARS_IN_A_TOKEN:
            break
        budget_tokens -= count(line) + 1
        if budget_tokens < 0:
            break
        taken.append(line)
    return taken


def ends(text: str, budget_tokens: int, count: CountTokens) -> str:
    """Both ends of a text, cut between words, with the gap marked: `[... 12,345 chars ...]`."""
    chars = budget_tokens * 3
    while chars > 16:
        head = to_word_end(text[: chars * 2 // 3 + 1])
        tail = to_word_start(text[-(chars // 3 + 1) :])
        told = f"{head} [... {len(text) - len(head) - len(tail):,} chars ...] {tail}".strip()
        if count(told) <= budget_tokens:
            return told
        chars //= 2
    return ""
