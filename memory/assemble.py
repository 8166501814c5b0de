"""From a request, its frozen prompt and its blocks to the messages that are forwarded."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from memory.identify import Line
from memory.messages import ChatRequest, Message, first_turn
from memory.types import Aside, Block, Form, Frozen, Part, Placement

# Why a message stands in a prompt: it has come since the rollover, comes back, or was said between the model and us.
NEW, REINJECTED, ASIDE, KEPT_ASIDE = "new", "re-injected", "recall", "recall, most recent"


class Counted(msgspec.Struct, frozen=True):
    """A request on its line, with the tokens of everything."""

    asked: ChatRequest
    line: Line
    tokens: tuple[int, ...]  # of each message of the line
    system_tokens: Mapping[int, int]  # by index in asked.messages
    fixed: int  # tools, response format and the reply's own
    tool_tokens: int = 0  # of a tool of ours beside the client's
    asides: Mapping[int, Aside] = {}  # that stand in the prompt, by the position of their answer

    @property
    def front(self) -> int:
        """Tokens that stand before everything we may change: system messages at the front, tools."""
        front = first_turn(self.asked.messages)
        systems = sum(tokens for index, tokens in self.system_tokens.items() if index < front)
        return self.fixed + self.tool_tokens + systems

    @property
    def weights(self) -> tuple[int, ...]:
        """Tokens of each message of the line with its aside, as it stands in the prompt in full."""
        if not self.asides:
            return self.tokens
        return tuple(tokens + self._aside_tokens(i) for i, tokens in enumerate(self.tokens))

    def _aside_tokens(self, position: int) -> int:
        aside = self.asides.get(position)
        if aside is None:
            return 0
        return sum(aside.tokens) - (self.tokens[position] if aside.whole else 0)

    @property
    def total(self) -> int:
        """Of the request as the client sent it."""
        return self.fixed + sum(self.system_tokens.values()) + sum(self.tokens[self.line.cut :])


class Piece(msgspec.Struct, frozen=True):
    """One forwarded message."""

    raw: bytes
    placement: Placement


def assemble(counted: Counted, frozen: Frozen, blocks: Mapping[int, Block]) -> tuple[Piece, ...]:
    """The forwarded messages, in order.

    Args:
        blocks: the blocks that stand in this prompt, by the position of their user message.
    """
    return tuple(pieces(counted, frozen, blocks))


def pieces(counted: Counted, frozen: Frozen, blocks: Mapping[int, Block]) -> Iterator[Piece]:
    asked, line = counted.asked, counted.line
    front = first_turn(asked.messages)
    late = late_systems(asked.messages, front, line.cut)
    for index in range(front):
        yield system(counted, index)
    shown = {i for part in kept_parts(frozen) for i in range(part.start, part.stop)}
    hidden = [index for index, position in late if position < frozen.covers and position not in shown]
    for n, part in enumerate(frozen.parts):
        if part.raw is not None:
            yield Piece(part.raw, Placement(part.start, part.stop, part.form, part.tokens, part.why))
        else:
            yield from verbatim(counted, range(part.start, part.stop), part.why, blocks, late)
        if n == 0 and hidden:  # the newest system message of what was folded keeps its words
            yield system(counted, hidden[-1])
    yield from verbatim(counted, range(frozen.covers, len(line)), NEW, blocks, late)
    for index, position in late:
        if position == len(line):
            yield system(counted, index)


def stable_pieces(made: Sequence[Piece]) -> int:
    """How many of the first stay as they are until the next rollover."""
    return next((n for n, piece in enumerate(made) if piece.placement.why in (NEW, REINJECTED, ASIDE)), len(made))


def verbatim(
    counted: Counted, positions: range, why: str, blocks: Mapping[int, Block], late: Sequence[tuple[int, int]]
) -> Iterator[Piece]:
    """The client's own messages, each with the system messages, the block and the aside that stand before it."""
    before = {position: [i for i, p in late if p == position] for _, position in late}
    for position in positions:
        for index in before.get(position, ()):
            yield system(counted, index)
        if position in blocks and blocks[position].raw:
            block = blocks[position]
            yield Piece(block.raw, Placement(position, position, Form.FULL, block.tokens, REINJECTED))
        aside = counted.asides.get(position)
        if aside is not None:
            for said, tokens in zip(aside.messages, aside.tokens, strict=True):
                stays = KEPT_ASIDE if why != NEW else ASIDE
                yield Piece(said, Placement(position, position, Form.FULL, tokens, stays))
            if aside.whole:
                continue
        raw = counted.line.messages[position].raw
        yield Piece(raw, Placement(position, position + 1, Form.FULL, counted.tokens[position], why))


def at_positions(path: Line, asides: Sequence[tuple[bytes, Aside]]) -> dict[int, Aside]:
    """By the positions of their answers."""
    if not asides:
        return {}
    positions = {node: i for i, node in enumerate(path.nodes)}
    return {positions[node]: aside for node, aside in asides if node in positions}


def with_asides(counted: Counted, asides: Mapping[int, Aside], frozen: Frozen | None) -> Counted:
    """With those that stand in a prompt: a rollover has kept some, all since are there."""
    if frozen is None:
        return counted
    since = {i: a for i, a in asides.items() if i >= frozen.covers and a.dialect == counted.asked.dialect}
    return msgspec.structs.replace(counted, asides={**dict(frozen.asides), **since})


def kept_asides(counted: Counted, frozen: Frozen) -> Frozen:
    """A new frozen prompt with the asides of the answers that it keeps in full."""
    kept = {i for part in kept_parts(frozen) for i in range(part.start, part.stop)}
    asides = tuple((i, aside) for i, aside in counted.asides.items() if i in kept)
    return msgspec.structs.replace(frozen, asides=asides)


def late_systems(messages: Sequence[Message], front: int, cut: int = 0) -> list[tuple[int, int]]:
    """System messages behind the front: (index in the request, position of the line's message that follows)."""
    out = []
    position = cut
    for index, message in enumerate(messages):
        if not message.is_system:
            position += 1
        elif index >= front:
            out.append((index, position))
    return out


def system(counted: Counted, index: int) -> Piece:
    raw = counted.asked.messages[index].raw
    return Piece(raw, Placement(-1, -1, Form.FULL, counted.system_tokens[index], "system"))


def kept_parts(frozen: Frozen) -> tuple[Part, ...]:
    return tuple(part for part in frozen.parts if part.raw is None)


def displaced(frozen: Frozen) -> tuple[int, ...]:
    """Positions whose full text stands no longer in the prompt."""
    kept = {i for part in kept_parts(frozen) for i in range(part.start, part.stop)}
    return tuple(i for i in range(frozen.covers) if i not in kept)
