"""How large the prompt stands, whether it must roll over, which blocks stand in it. Pure arithmetic over a line.

The numbers it gives are also what `GET /memory-manager/turns/{id}` explains.
"""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from memory.assemble import Counted, Piece, displaced, kept_parts, late_systems, system
from memory.errors import CannotFit
from memory.identify import Line
from memory.messages import first_turn
from memory.prices import block_allowance, block_stays, input_cost, rollover_pays
from memory.prompts import HELD_BACK
from memory.segment import segment
from memory.types import Block, Budget, Form, Frozen, Placement, Prices

HELD_BACK_TOKENS = 40
PLENTY = 2  # blocks of full size that a session can still afford; with less it spends on the best alone
LOOP_PARTS = 8  # of the room between two rollovers: a block inside a loop has at most one
LOOP_TOKENS = 3_072  # or, where windows are small, so many in its first request, and later if rollovers stay rare
RECALL_SPARE = 8  # of the window: one part stays free of blocks where the model may ask for more, or it asks in vain
ASKING_TOKENS = 256  # that a call of it and its result take at least
LOOP_SPARE = 5  # of the room up to the limit: one part stays free for the calls that follow, or they cut it at once
ROLLOVERS = 1.3  # times what the client's new messages alone would cause, at most
FIRST_TOKENS, FIRST_WINDOWS = 16_384, 2  # that a session may spend on blocks before it has earned any, the less


class Standing(msgspec.Struct, frozen=True):
    """The prompt as it would be forwarded without a rollover and without a new block."""

    counted: Counted
    budget: Budget
    prices: Prices
    frozen: Frozen | None
    blocks: Mapping[int, Block]  # by the position of their user message
    cold: bool  # the provider has forgotten the prefix

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        if self.frozen is None:
            return self.counted.total
        blocks = sum(block.kept_tokens for block in self.blocks.values())  # what fills up is cut when it is in the way
        return self.counted.front + self.late_tokens + self.frozen.tokens + self.new_tokens + blocks

    @property
    def late_tokens(self) -> int:
        """Of system messages behind the front, all of them: the few that are left out are not worth the care."""
        front = first_turn(self.counted.asked.messages)
        return sum(tokens for index, tokens in self.counted.system_tokens.items() if index >= front)

    @property
    def new_tokens(self) -> int:
        covers = self.frozen.covers if self.frozen else 0
        return sum(self.counted.weights[covers:])

    @property
    def fresh_tokens(self) -> int:
        """Of the messages that are new in this request."""
        return sum(self.counted.tokens[self.counted.line.fresh :])

    @property
    def turns(self) -> int:
        return sum(message.role == "assistant" for message in self.counted.line.messages)

    def allowance(self, spent: int) -> int:
        """Tokens that may still be spent on blocks in this session."""
        messages = self.counted.line.messages
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        answers = answers or [i for i, message in enumerate(messages) if message.role == "user"]
        first = min(FIRST_TOKENS, FIRST_WINDOWS * self.budget.window)
        return block_allowance(self.counted.front, self.counted.tokens, answers, first, spent)

    @property
    def due(self) -> bool:
        return self.tokens > self.budget.trigger

    def why(self) -> str | None:
        """Why to roll over now; None: not yet."""
        if not self.due:
            return None
        if self.tokens > self.budget.limit - (ASKING_TOKENS if self.counted.tool_tokens else 0):
            return "over the limit"
        if self.cold:
            return "due, and the provider's cache is cold"
        front = self.counted.front
        if rollover_pays(self.tokens, self.fresh_tokens, front, self.turns, self.budget, self.prices):
            return "due, and it lowers the bill"
        return None


def spent_on_blocks(frozen: Frozen | None, blocks: Iterable[Block]) -> int:
    """Tokens of the session's allowance that are gone: up to the newest rollover, and since."""
    if frozen is None:
        return 0
    since = {block.asked: block.paid_tokens for block in blocks if block.asked >= frozen.asked}
    return frozen.spent + sum(since.values())


def usable(line: Line, prompts: Iterable[Frozen], dialect: str) -> Frozen | None:
    """The frozen prompt in a dialect that covers most of a line; of equal ones the later.

    One that folded what is the newest user message here is passed over: it was made on a fork on which the user had
    said more.
    """
    shown = [frozen for frozen in prompts if frozen.dialect == dialect and not hides_newest_user(line, frozen)]
    return max(shown, key=lambda frozen: (frozen.covers, frozen.asked), default=None)


def hides_newest_user(line: Line, frozen: Frozen) -> bool:
    user = line.newest_user
    if user is None or not line.cut <= user < frozen.covers:
        return False
    return not any(part.start <= user < part.stop for part in kept_parts(frozen))


def seen_from(blocks: Iterable[Block], session: str | None) -> tuple[Block, ...]:
    """Without blocks whose items were brought for another session: the same line may be sent under two names."""
    return tuple(block for block in blocks if not block.items or block.session == session)


def standing_blocks(
    counted: Counted, frozen: Frozen | None, blocks: Iterable[Block], budget: Budget, prices: Prices
) -> dict[int, Block]:
    """The blocks that are part of the prompt.

    The newest user message's block stands as it was made or cut last; what filled it up stays while it fits
    (`cut_to_fit`), unless it is so much that reading it again and again costs more than cutting it once. An older one
    stands where that is cheaper than taking it out: not where it would have to be cut now, for the provider reads all
    behind a cut anew. That is decided from what lies between the two user messages, so every later request decides
    alike.
    """
    if frozen is None:
        return {}
    since = sorted((block for block in blocks if block.asked >= frozen.asked), key=lambda block: block.asked)
    if not since:
        return {}
    messages = counted.line.messages
    newest = counted.line.newest_user
    gone = set(displaced(frozen))
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    latest = {block.position: block for block in since if block.position not in gone}
    stay = {}
    for position, block in latest.items():
        following = next((i for i in users if i > position), None)
        behind = sum(counted.tokens[position : following if following is not None else len(messages)])
        small = bool(block.kept) and block.filled_tokens - block.kept_tokens <= LOOP_TOKENS
        if position == newest:
            stay[position] = block if small or block.asked == len(messages) else block.cut()
            continue
        was_cut = not block.filled or (not small and following is not None and following > block.asked + 1)
        if was_cut and block.kept and block_stays(block.kept_tokens, behind, budget, prices):
            stay[position] = block.cut()
    return stay


class Room(msgspec.Struct, frozen=True):
    """Tokens that a new block may have."""

    stays: int  # as long as it stands
    once: int  # in the request that made it, and while it fits; at most `stays` where filling does not pay
    scarce: bool  # the session has little left to spend on blocks


def block_room(standing: Standing, in_loop: bool, max_share: float, allowance: int, rolled: bool) -> Room:
    """What the next block may have.

    With a cold cache filling the prompt up costs no more than the client's own, longer prompt would have.

    Args:
        standing: the prompt without it.
        in_loop: it stays for a whole loop, so it must not bring the next rollover near.
        max_share: of the window.
        allowance: tokens that the session may still spend on blocks.
        rolled: this request rolled over, so all behind the front is written anew in any case.
    """
    budget = standing.budget
    room = max(budget.limit - standing.tokens - spare(standing), 0)
    once = most = int(max_share * budget.window)
    if in_loop:
        between = budget.trigger - budget.target
        left = budget.limit - budget.target - int(between / ROLLOVERS)
        most = min(most, max(between // LOOP_PARTS, min(LOOP_TOKENS, left)))
        once = max(most, min(once, LOOP_TOKENS, room - room // LOOP_SPARE))
    scarce = allowance < PLENTY * most
    stays = min(most, room, allowance // 2 if scarce else allowance)
    if rolled and standing.cold:
        return Room(stays, room, scarce)
    if rolled and not in_loop:
        return Room(stays, min(room, allowance), scarce)
    return Room(stays, stays if scarce else max(stays, min(once, room, allowance)), scarce)


def spare(standing: Standing) -> int:
    """Tokens that what fills up leaves to the recall tool, where the request has it."""
    return standing.budget.window // RECALL_SPARE if standing.counted.tool_tokens else 0


def cut_to_fit(standing: Standing) -> dict[int, Block]:
    """The blocks of a prompt that must fit: what fills up is cut first, then the largest are emptied.

    They fitted when they were made; but the prompt grows, and a window can turn out smaller than it was thought.
    """
    blocks = dict(standing.blocks)
    over = standing.tokens - standing.budget.limit
    for position, block in sorted(blocks.items(), key=lambda pair: -pair[1].tokens):
        if over + spare(standing) + block.tokens - block.kept_tokens > 0:
            blocks[position] = block = block.cut()
        if over > 0:
            over -= block.kept_tokens
            blocks[position] = Block(position, block.asked, b"", 0)
    return blocks


def written_anew(standing: Standing, stood: Block | None, block: Block) -> int:
    """Tokens that the provider must read anew for the newest block, beside the new messages.

    Args:
        stood: how the block stood in the prompt before; None: it is new.
    """
    if block is stood:
        return 0
    if stood is None:
        return block.tokens
    line = standing.counted.line
    return block.tokens + sum(standing.counted.tokens[block.position : line.fresh])


def saved_input(standing: Standing, forwarded: int, rolled: bool, anew: int) -> tuple[float, float]:
    """What the input side would have cost directly, without a window, and what it costs: both estimates.

    Direct: all but the new messages is read from a warm cache. Ours: the same, but a rollover keeps only the front
    in the cache, and a block is written once, with what stands behind it where it is cut.

    Args:
        anew: see `written_anew`.
    """
    counted, prices = standing.counted, standing.prices
    if standing.cold:
        return input_cost(counted.total, 0, prices), input_cost(forwarded, 0, prices)
    cached = counted.front if rolled else max(forwarded - standing.fresh_tokens - anew, 0)
    direct = input_cost(counted.total, max(counted.total - standing.fresh_tokens, 0), prices)
    return direct, input_cost(forwarded, cached, prices)


def without_store(counted: Counted, budget: Budget, message: Callable[[str, str], bytes]) -> tuple[Piece, ...]:
    """The store-less plan: system messages, the newest turn and as much tail as fits, and one line that says so.

    Raises:
        CannotFit: the newest turn alone is over the limit.
    """
    line, tokens = counted.line, counted.tokens
    front = first_turn(counted.asked.messages)
    late = [index for index, _ in late_systems(counted.asked.messages, front)][-1:]
    user = line.newest_user
    keep = {user} if user is not None else set()
    room = budget.limit - counted.front - sum(counted.system_tokens[i] for i in late) - HELD_BACK_TOKENS
    room -= sum(tokens[i] for i in keep)
    start = len(line)
    for n, item in enumerate(reversed(segment(line.messages, tokens))):
        cost = item.tokens - sum(tokens[i] for i in keep if item.start <= i < item.stop)
        if cost > room or item.start < line.cut:
            if n == 0:
                raise CannotFit
            break
        room -= cost
        start = item.start
    if room < 0:
        raise CannotFit
    shown = sorted(keep | set(range(start, len(line))))
    held = Piece(message("user", HELD_BACK), Placement(0, start, Form.HINT, HELD_BACK_TOKENS, "database away"))
    body = [Piece(line.messages[i].raw, Placement(i, i + 1, Form.FULL, tokens[i], "as much as fits")) for i in shown]
    return (*(system(counted, i) for i in (*range(front), *late)), held, *body)
