"""Which form each message takes in the prompt: the rollover.

Pure: from a line, its token counts and a budget to a frozen prompt. What is old and cheap to lose goes first, calls
keep their results, the newest user message keeps its words. So do those that a user has put beside results since.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from memory.digest.shorten import shorten
from memory.digest.stretch import Line as Told
from memory.digest.stretch import digest_stretch, merge, title
from memory.errors import CannotFit
from memory.identify import Line, message_hint, stretch_hint
from memory.messages import Message, spoken
from memory.segment import segment
from memory.types import Budget, Form, Frozen, Item, Part, Stretch

CountTokens = Callable[[str], int]

MESSAGE_TOKENS = 5  # what a message of ours costs beside its text: role and separators
SMALLEST_DIGEST = 96  # tokens: a heading and one hint line
SMALLEST_RESULT = 64  # tokens a tool result keeps when it is shortened in place
STRETCH_TOKENS = 120  # a digest shorter than this is split no further
MOST_STRETCHES = 6  # new ones at a rollover
WORDS_PARTS = 8  # of the room: earlier words beside results have one at most, for clients remind the model there, too


class Writer(msgspec.Struct, frozen=True):
    """How the dialect at hand writes what we add; the shapes belong to the wire."""

    digest: Callable[[Sequence[Stretch]], str]  # the words of a digest message
    message: Callable[[str, str], bytes]  # role, content -> a message
    results: Callable[[bytes], Sequence[bytes]]  # each tool result in a message, as a message of its own
    words: Callable[[bytes], bytes]  # what a user says beside them, as a message of its own
    with_content: Callable[[bytes, str, int], bytes]  # a client's message with other content of its nth result
    read: Callable[[bytes], Message]
    shortened: Callable[[str, str, int], str]  # hint, shorter text, original tokens -> content


class Rollover(msgspec.Struct, frozen=True):
    """All that decides a rollover."""

    line: Line
    tokens: Sequence[int]  # of each message of the line
    front: int  # tokens of system messages, tools and the reply's own
    budget: Budget
    digest_share: float  # of what the frozen part has beside the front
    count: CountTokens
    weigh: Callable[[Message], int]  # prompt tokens of a message
    writer: Writer

    @property
    def fresh(self) -> int:
        return self.line.fresh

    @property
    def pinned_user(self) -> int | None:
        """The newest user message, where calls have followed it."""
        user = self.line.newest_user
        return user if user is not None and user < self.fresh else None


def roll(case: Rollover, old: Frozen | None) -> Frozen:
    """Freeze the prompt anew at the target.

    Raises:
        CannotFit: what may not shrink is over the limit.
    """
    room = case.budget.target - case.front
    new = sum(case.tokens[case.fresh :])
    overflow = case.front + room + new - case.budget.limit
    frozen = freeze(case, old, room - max(0, overflow))
    if case.front + frozen.tokens + new > case.budget.limit:
        frozen = shorten_results(case, frozen)
    return frozen


def freeze(case: Rollover, old: Frozen | None, room: int) -> Frozen:
    """Digest and verbatim tail within `room` tokens, as far as pinned messages allow."""
    user = case.pinned_user
    pinned = pinned_parts(case, room)
    room -= sum(part.tokens for part in pinned.values())
    digest_room = max(SMALLEST_DIGEST, int(room * case.digest_share))
    start = tail_start(case, room - digest_room, pinned)
    tail = sum(case.tokens[start : case.fresh]) - sum(part.tokens for i, part in pinned.items() if i >= start)
    digest_room = max(digest_room, (room - tail) // 2)  # of what the tail leaves because its next item is too large
    stretches = tell(case, old, start, user, digest_room)
    parts = (*digest_parts(case, stretches, start), *(part for i, part in pinned.items() if i < start))
    if start < case.fresh:
        parts += (Part(start, case.fresh, sum(case.tokens[start : case.fresh]), why="most recent"),)
    return Frozen(
        covers=case.fresh,
        parts=parts,
        stretches=stretches,
        tokens=sum(part.tokens for part in parts),
        asked=len(case.line),
        cut=case.line.cut,
        rollovers=old.rollovers + 1 if old else 1,
    )


def pinned_parts(case: Rollover, room: int) -> Mapping[int, Part]:
    """What stays in the prompt however old it is, by position: the newest user message, and words beside results since.

    Of those the newest stay, shorter where they are too large; earlier ones, newest first, while they are few.
    """
    user, spoken = case.pinned_user, [i for i in case.line.words_beside if i < case.fresh]
    parts = {} if user is None else {user: Part(user, user + 1, case.tokens[user], why="newest user message")}
    if not spoken:
        return parts
    newest = words_part(case, spoken[-1], words_room(case))
    earlier: list[Part] = []
    left = (room - sum(part.tokens for part in parts.values())) // WORDS_PARTS
    for position in reversed(spoken[:-1]):
        part = words_part(case, position)
        left -= part.tokens
        if left < 0:
            break
        earlier.append(part)
    return parts | {part.start: part for part in (*reversed(earlier), newest)}


def words_part(case: Rollover, position: int, room: int | None = None) -> Part:
    """What a user says beside results, without them: they go when their call goes."""
    raw, why = case.writer.words(case.line.messages[position].raw), "newest user words beside results"
    words = case.writer.read(raw)
    tokens = case.weigh(words)
    if room is None or tokens <= room:
        return Part(position, position + 1, tokens, raw, why=why)
    text = shorter_text(case, message_hint(case.line.nodes[position]), words.text, tokens, room)
    raw = case.writer.message("user", text)
    return Part(position, position + 1, case.weigh(case.writer.read(raw)), raw, Form.SUMMARY, why)


def words_room(case: Rollover) -> int:
    """Half of what the limit leaves when all else is as small as it can be: the results at hand need room, too."""
    least = sum(
        min(case.tokens[i], SMALLEST_RESULT * (1 + len(case.line.messages[i].more_call_ids)))
        for i in range(case.fresh, len(case.line))
    )
    start, user = tail_start(case, 0, {}), case.pinned_user
    least += sum(case.tokens[start : case.fresh])
    least += case.tokens[user] if user is not None and user < start else 0
    return max((case.budget.limit - case.front - least - SMALLEST_DIGEST) // 2, SMALLEST_RESULT)


def digest_parts(case: Rollover, stretches: tuple[Stretch, ...], stop: int) -> tuple[Part, ...]:
    if not stretches:
        return ()
    text = case.writer.digest(stretches)
    raw = case.writer.message("user", text)
    return (Part(0, stop, case.count(text) + MESSAGE_TOKENS, raw, Form.SUMMARY, "old"),)


def tail_start(case: Rollover, room: int, pinned: Mapping[int, Part]) -> int:
    """Where the verbatim tail begins: as many whole items as fit, newest first; an open call always."""
    start = case.fresh
    for item in reversed(segment(case.line.messages[: case.fresh], case.tokens)):
        cost = item.tokens - sum(pinned[i].tokens for i in range(item.start, item.stop) if i in pinned)
        if item.start < case.line.cut or (cost > room and not is_open(item, case)):
            break  # what the client cut off is told, never sent again: it may be in another dialect
        room -= cost
        start = item.start
    return start


def is_open(item: Item, case: Rollover) -> bool:
    """A call whose results are new in this request, or an answer that the model is to go on with."""
    return item.stop == case.fresh and (item.kind == "exchange" or case.fresh == len(case.line))


def tell(case: Rollover, old: Frozen | None, stop: int, user: int | None, room: int) -> tuple[Stretch, ...]:
    """The stretches of the digest: what left before, shorter, and what leaves now."""
    before = old.stretches if old else ()
    told = told_positions(old)
    leaving = [i for i in range(stop) if i not in told and i != user]
    heading = case.count(case.writer.digest(())) + MESSAGE_TOKENS
    room = max(room - heading, SMALLEST_DIGEST - heading)
    if not leaving:
        return shrink(case, before, (), room)
    used = text_tokens(case, before)
    new = tell_new(case, leaving, max(room // 2, room - used))
    return shrink(case, before, new, room)


def told_positions(old: Frozen | None) -> frozenset[int]:
    """Messages that stretches speak of: all they span, without those that were kept in full."""
    if old is None:
        return frozenset()
    kept = {i for part in old.parts if part.raw is None for i in range(part.start, part.stop)}
    return frozenset(i for s in old.stretches for i in range(s.start, s.stop) if i not in kept)


def tell_new(case: Rollover, leaving: Sequence[int], room: int) -> tuple[Stretch, ...]:
    pieces = split(case, leaving, max(1, min(MOST_STRETCHES, room // STRETCH_TOKENS)))
    return tuple(stretch(case, piece, room // len(pieces)) for piece in pieces)


def split(case: Rollover, leaving: Sequence[int], pieces: int) -> list[Sequence[int]]:
    """Cut positions into pieces of about the same tokens, where a user message begins if one is near."""
    total = sum(case.tokens[i] for i in leaving)
    out: list[Sequence[int]] = []
    begin, gathered = 0, 0
    for n, position in enumerate(leaving):
        opens = case.line.messages[position].role == "user"
        if n > begin and len(out) < pieces - 1 and gathered >= total / pieces and opens:
            out.append(leaving[begin:n])
            begin, gathered = n, 0
        gathered += case.tokens[position]
    out.append(leaving[begin:])
    return out


def stretch(case: Rollover, positions: Sequence[int], room: int) -> Stretch:
    lines = [line for i in positions for line in told(case, i)]
    first, last = positions[0], positions[-1]
    bare = Stretch(
        id=stretch_hint(case.line.nodes[last]),
        start=first,
        stop=last + 1,
        tokens=sum(case.tokens[i] for i in positions),
        title=title(lines),
    )
    left = room - text_tokens(case, (bare,))
    return replace(bare, text=digest_stretch(lines, left, case.count)) if left > 0 else bare


def told(case: Rollover, position: int) -> Sequence[Told]:
    """A message as a line of a stretch; where a user speaks beside results, that is a line of the user's."""
    message, tokens = case.line.messages[position], case.tokens[position]
    if message.has_user_words:
        words = case.writer.read(case.writer.words(message.raw))
        found = "\n".join(case.writer.read(result).text for result in case.writer.results(message.raw))
        said = case.weigh(words)
        return (
            Told(position, message.role, message.name, found, max(tokens - said, 0)),
            Told(position, words.role, words.name, words.text, said),
        )
    return (Told(position, message.role, message.name, spoken(message), tokens),)


def text_tokens(case: Rollover, stretches: Sequence[Stretch]) -> int:
    """What stretches cost inside a digest message, its heading aside."""
    if not stretches:
        return 0
    return case.count(case.writer.digest(stretches)) - case.count(case.writer.digest(()))


def shrink(case: Rollover, old: tuple[Stretch, ...], new: tuple[Stretch, ...], room: int) -> tuple[Stretch, ...]:
    """Make old stretches shorter, oldest first: half the text, then the hint line alone, then one line for many."""
    for step in (halve, bare, gather):
        for n in range(len(old)):
            if text_tokens(case, old + new) <= room:
                return old + new
            old = step(case, old, n)
    return old + new


def halve(case: Rollover, old: tuple[Stretch, ...], n: int) -> tuple[Stretch, ...]:
    if not old[n].text:
        return old
    shorter = merge([old[n].text], case.count(old[n].text) // 2, case.count)
    return (*old[:n], replace(old[n], text=shorter), *old[n + 1 :])


def bare(case: Rollover, old: tuple[Stretch, ...], n: int) -> tuple[Stretch, ...]:
    return (*old[:n], replace(old[n], text=""), *old[n + 1 :])


def gather(case: Rollover, old: tuple[Stretch, ...], n: int) -> tuple[Stretch, ...]:
    """Put the two oldest lines into one, which opens the list of both."""
    if len(old) < 2:
        return old
    first, second, *rest = old
    members = (*(first.members or (first,)), *(second.members or (second,)))
    one = Stretch(
        id=stretch_hint(case.line.nodes[second.stop - 1])[::-1],  # its own: the last stretch has the plain one
        start=first.start,
        stop=second.stop,
        tokens=first.tokens + second.tokens,
        title=f"{len(members)} older stretches, from: {members[0].title}",
        members=members,
    )
    return (one, *rest)


def shorten_results(case: Rollover, frozen: Frozen) -> Frozen:
    """Shorten tool results that are new in this request, largest first, until the prompt fits.

    Raises:
        CannotFit: the rest alone is over the limit.
    """
    messages = case.line.messages
    fresh = range(case.fresh, len(case.line))
    results = [i for i in fresh if messages[i].role in ("tool", "function") and case.tokens[i] > SMALLEST_RESULT]
    beside = {i: beside_results(case, i) for i in results}
    fixed = case.front + frozen.tokens + sum(case.tokens[i] for i in fresh if i not in results) + sum(beside.values())
    wants = [case.tokens[i] - beside[i] for i in results]
    share_of = dict(zip(results, fair_shares(wants, case.budget.limit - fixed), strict=True))
    if not results or fixed > case.budget.limit or any(share < least(case, i) for i, share in share_of.items()):
        raise CannotFit
    parts = tuple(
        shorter_result(case, i, share_of[i] + beside[i])
        if i in share_of and share_of[i] + beside[i] < case.tokens[i]
        else Part(i, i + 1, case.tokens[i], why="new")
        for i in fresh
    )
    return replace(
        frozen,
        covers=len(case.line),
        parts=frozen.parts + parts,
        tokens=frozen.tokens + sum(part.tokens for part in parts),
    )


def least(case: Rollover, position: int) -> int:
    """Tokens that a message of results takes at least: each result keeps something, and the hint."""
    if case.tokens[position] <= SMALLEST_RESULT:
        return 0
    return min(case.tokens[position], sum(min(SMALLEST_RESULT, tokens) for tokens in result_tokens(case, position)))


def beside_results(case: Rollover, position: int) -> int:
    """Tokens of what stands beside the results in a message, and is not shortened."""
    return max(0, case.tokens[position] - sum(result_tokens(case, position)))


def result_tokens(case: Rollover, position: int) -> list[int]:
    return [case.weigh(case.writer.read(raw)) for raw in case.writer.results(case.line.messages[position].raw)]


def shorter_result(case: Rollover, position: int, room: int) -> Part:
    """A message of results in fewer tokens: the large ones are shortened, what is small or no result stays.

    Of a sealed message, whose words the line does not have, none are told.
    """
    message = case.line.messages[position]
    raw, hint = message.raw, message_hint(case.line.nodes[position])
    is_sealed = case.writer.read(raw) != message
    results = [case.writer.read(result) for result in case.writer.results(raw)]
    tokens = [case.weigh(result) for result in results]
    beside = max(0, case.tokens[position] - sum(tokens))
    for n, share in enumerate(fair_shares(tokens, room - beside)):
        if share < tokens[n]:
            text = message.text if is_sealed else results[n].text
            raw = case.writer.with_content(raw, shorter_text(case, hint, text, tokens[n], share), n)
    why = "one result larger than what is left of the window"
    return Part(position, position + 1, case.weigh(case.writer.read(raw)), raw, Form.SUMMARY, why)


def shorter_text(case: Rollover, hint: str, text: str, tokens: int, room: int) -> str:
    frame = case.count(case.writer.shortened(hint, "", tokens)) + MESSAGE_TOKENS * 4
    return case.writer.shortened(hint, shorten(text, max(room - frame, SMALLEST_RESULT // 4), case.count), tokens)


def fair_shares(wants: Sequence[int], room: int) -> list[int]:
    """Divide room so that small wants are met in full and the large ones get the same.

    >>> fair_shares([10, 100, 500], 300)
    [10, 100, 190]
    """
    shares = [0] * len(wants)
    left = max(room, 0)
    order = sorted(range(len(wants)), key=lambda i: wants[i])
    for n, i in enumerate(order):
        shares[i] = min(wants[i], left // (len(order) - n))
        left -= shares[i]
    return shares
