"""Why a prompt looks as it does: the numbers behind a turn, ready to be written as JSON.

Values stay as they are; msgspec writes them, and only when the turn is recorded.
"""

from collections.abc import Mapping, Sequence

from memory.assemble import ASIDE, KEPT_ASIDE, REINJECTED, Piece
from memory.fold import Standing
from memory.types import Block, Frozen

Explained = Mapping[str, object]


def explain(
    standing: Standing, why: str | None, pieces: Sequence[Piece], frozen: Frozen, block: Block | None
) -> Explained:
    return {
        **numbers(standing),
        "rollover": why,
        "rollovers": frozen.rollovers,
        "placements": [piece.placement for piece in pieces],
        "stretches": [
            {"id": s.id, "start": s.start, "stop": s.stop, "tokens": s.tokens, "title": s.title}
            for s in frozen.stretches
        ],
        "block": told_block(block) if block else None,
        "forwarded": [piece.raw.decode("utf-8", "replace") for piece in pieces if is_ours(piece)],
    }


def numbers(standing: Standing) -> dict[str, object]:
    """What decided: tokens, budget, relative prices."""
    return {
        "budget": standing.budget,
        "prices": standing.prices,
        "prompt_tokens": standing.tokens,
        "front_tokens": standing.counted.front,
        "fresh_tokens": standing.fresh_tokens,
        "turns": standing.turns,
        "due": standing.due,
        "cache_cold": standing.cold,
    }


def told_block(block: Block) -> dict[str, object]:
    quotes = block.filled_quotes if block.filled else block.quotes
    return {
        "position": block.position,
        "tokens": block.tokens,
        "kept_tokens": block.kept_tokens,
        "quotes": quotes,
        "items": block.items,
    }


def is_ours(piece: Piece) -> bool:
    """Text that stands in no message of the client: digests, shortened results, blocks, recalls."""
    placement = piece.placement
    return placement.why in (REINJECTED, "database away", ASIDE, KEPT_ASIDE) or placement.form != "full"
