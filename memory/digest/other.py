"""Everything else (code, listings, tables, blobs): the head and the tail, and how much is left out between them."""

from memory.digest.fit import CHARS_IN_A_TOKEN, CountTokens, clean, to_word_end, to_word_start

HEAD_SHARE = 0.6  # of the budget; the rest is for the tail
GAP_TOKENS = 10  # of `[... 12,345 lines ...]`
CHARS_PER_TOKEN = 3  # to begin with, where a line is cut


def shorten_other(text: str, budget_tokens: int, count: CountTokens) -> str:
    """Whole lines from both ends with the gap marked; a text whose lines do not fit is cut between words."""
    text = clean(text)
    lines = text.splitlines()
    room = budget_tokens - GAP_TOKENS
    head = take(lines, int(room * HEAD_SHARE), count)
    tail = take(lines[len(head) :][::-1], room - int(room * HEAD_SHARE), count)[::-1]
    left = len(lines) - len(head) - len(tail)
    shown = "\n".join([*head, *([f"[... {left:,} lines ...]"] if left else []), *tail])
    if (head or tail) and count(shown) <= budget_tokens:
        return shown
    return ends(text, budget_tokens, count)


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
    chars = min(len(text), budget_tokens * CHARS_PER_TOKEN)
    while chars > 3:
        tail_chars = int(chars * (1 - HEAD_SHARE)) + 1
        head = to_word_end(text[: chars - tail_chars])
        tail = to_word_start(text[-tail_chars:])
        told = f"{head} [... {len(text) - len(head) - len(tail):,} chars ...] {tail}".strip()
        if count(told) <= budget_tokens:
            return told
        chars //= 2
    return ""
