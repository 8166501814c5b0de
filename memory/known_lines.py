"""What we hold of lines and hang on their nodes: in the database, and in this process as far as it has seen it."""

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from memory.bounded import Bounded
from memory.errors import StoreError
from memory.fold import usable
from memory.held import Held, Known
from memory.identify import Line
from memory.recorder import Recorder
from memory.store.pool import Pool
from memory.store.turns import FoldRow, LineState, find_line, pack
from memory.types import Aside, Block, Frozen

T = TypeVar("T")

FOLDS_BYTES = 16 * 1024 * 1024  # of frozen prompts, of blocks, and of asides, that this process remembers

LINES = 10_000  # that are remembered to be incomplete

Whose = tuple[bytes, bytes]  # a tenant, and a node of its own


class Hung(NamedTuple, Generic[T]):
    """What hangs on a node of a line."""

    line: bytes  # its first node
    what: T


class KnownLines:
    def __init__(self, pool: Pool, recorder: Recorder, held: Held) -> None:
        self._pool = pool
        self._recorder = recorder
        self._held = held
        self._frozen: Bounded[Whose, Frozen] = Bounded(FOLDS_BYTES, frozen_bytes)
        self._blocks: Bounded[Whose, Hung[Block]] = Bounded(FOLDS_BYTES, lambda h: block_bytes(h.what), self._lost)
        self._asides: Bounded[Whose, Hung[Aside]] = Bounded(FOLDS_BYTES, lambda h: aside_bytes(h.what), self._lost)
        self._incomplete: Bounded[Whose, bool] = Bounded(LINES)  # lines of which something went, by their first node

    def frozen(self, tenant: bytes, path: Line) -> list[tuple[bytes, Frozen]]:
        """Frozen prompts of a line that this process holds, with their nodes, newest first."""
        return among(self._frozen, tenant, reversed(path.nodes))

    async def of(self, tenant: bytes, path: Line, dialect: str, known: Known) -> tuple[LineState, str | None]:
        """What is known of a line, and why the database could not tell, if so.

        Where this process has stored the line's newest answer and holds its frozen prompt, it knows as much; where
        it holds but the prompt, it asks what hangs on the line from there on.
        """
        held = tuple(self.frozen(tenant, path))
        blocks = tuple(hung.what for _, hung in among(self._blocks, tenant, path.nodes)) if held else ()
        asides = tuple((node, hung.what) for node, hung in among(self._asides, tenant, path.nodes)) if held else ()
        age = self._recorder.age(path)
        before = usable(path, [frozen for _, frozen in held], dialect)
        if age is not None and before and (tenant, path.nodes[0]) not in self._incomplete:
            return LineState(path.fresh, age_seconds=age, frozen=held, blocks=blocks, asides=asides), None
        begin = next((path.nodes.index(node) for node, frozen in held if frozen is before), 0)
        try:
            async with self._pool.connection() as connection:
                state = await find_line(connection, tenant, path.nodes, begin)
        except StoreError as error:
            return LineState(age_seconds=0, frozen=held, blocks=blocks, asides=asides), str(error)
        if self._held.is_current(tenant, known):
            self._learn(tenant, path, state)
        return with_held(state, held, blocks, asides), None

    def _learn(self, tenant: bytes, path: Line, state: LineState) -> None:
        """Keep what another process may have made; not where positions count messages that only the database has."""
        if state.continues is not None:
            return
        for node, frozen in state.frozen:
            self._frozen.put((tenant, node), frozen)
        self._incomplete.drop((tenant, path.nodes[0]))
        for block in state.blocks:
            self._blocks.put((tenant, path.nodes[block.asked - 1]), Hung(path.nodes[0], block))
        for node, aside in state.asides:
            self._asides.put((tenant, node), Hung(path.nodes[0], aside))

    def _lost(self, key: Whose, gone: "Hung[Any]") -> None:
        """What this process holds of a line is not all there is any more."""
        self._incomplete.put((key[0], gone.line), True)

    def remember(
        self, tenant: bytes, path: Line, state: LineState, frozen: Frozen | None, block: Block | None, held: Known
    ) -> tuple[FoldRow, ...]:
        """The rows to write for what was made. A frozen prompt hangs on its last message, so that forks share it;
        on the newest one where another hangs there already."""
        rows, keeps = [], self._held.is_current(tenant, held)
        if frozen:
            node = path.nodes[frozen.covers - 1]
            if any(taken == node for taken, _ in state.frozen):
                node = path.tip
            rows.append(FoldRow(node, "frozen", frozen.covers - 1, pack(frozen)))
            if keeps and not path.cut:
                self._frozen.put((tenant, node), frozen)
        if block:
            rows.append(FoldRow(path.tip, "block", len(path) - 1, pack(block)))
            if keeps:
                self._blocks.put((tenant, path.tip), Hung(path.nodes[0], block))
        return tuple(rows)

    def remember_aside(self, tenant: bytes, path: Line, node: bytes, aside: Aside, held: Known | None) -> FoldRow:
        """The row to write for what was said before the answer at a node."""
        is_first = (tenant, node) not in self._asides  # as in the database, where the first stays
        if held is not None and is_first and self._held.is_current(tenant, held):
            self._asides.put((tenant, node), Hung(path.nodes[0], aside))
        return FoldRow(node, "aside", len(path), pack(aside))

    def forget(self, tenant: bytes | None) -> None:
        """Drop what was made of a tenant's messages, None: of all."""
        for made in (self._frozen, self._blocks, self._asides):
            if tenant is None:
                made.clear()
            else:
                made.drop_where(lambda key: key[0] == tenant)


def among(kept: Bounded[Whose, T], tenant: bytes, nodes: Iterable[bytes]) -> list[tuple[bytes, T]]:
    """What hangs on some nodes, with them, in their order."""
    return [(node, value) for (_, node), value in kept.among((tenant, node) for node in nodes)]


def with_held(
    state: LineState,
    frozen: tuple[tuple[bytes, Frozen], ...],
    blocks: tuple[Block, ...],
    asides: tuple[tuple[bytes, Aside], ...],
) -> LineState:
    """With what this process holds beside it: newer than what the database has told, or the same."""
    return LineState(
        known=state.known,
        session=state.session,
        continues=state.continues,
        age_seconds=state.age_seconds,
        frozen=tuple({**dict(frozen), **dict(state.frozen)}.items()),
        blocks=(*state.blocks, *blocks),
        asides=(*state.asides, *asides),
    )


def frozen_bytes(frozen: Frozen) -> int:
    asides = sum(aside_bytes(aside) for _, aside in frozen.asides)
    return 500 + asides + 300 * len(frozen.stretches) + sum(len(part.raw or b"") + 200 for part in frozen.parts)


def block_bytes(block: Block) -> int:
    return 500 + len(block.kept + block.filled)


def aside_bytes(aside: Aside) -> int:
    return 500 + sum(map(len, aside.messages))
