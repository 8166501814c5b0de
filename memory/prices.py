"""What a prompt costs, and whether a rollover lowers the bill.

All amounts are token counts times `Prices`, so they are dollars where the prices are real and relative where they
are not. A provider charges `cached` for the longest prefix it has seen lately, `write` for the rest.
"""

from collections.abc import Sequence
from math import sqrt

from msgspec.structs import replace

from memory.models import RELATIVE_PRICES
from memory.types import Budget, Prices, Usage

BLOCK_SHARE = 0.01  # of all tokens that a session has asked, for blocks; a cached read costs a tenth, a block the whole


def weighed_with(prices: Prices | None) -> Prices:
    """The prices that decide: the real ones. A model that runs here costs nothing, and reading still takes its time."""
    if prices is None:
        return RELATIVE_PRICES
    return prices if prices.input or prices.output else replace(RELATIVE_PRICES, cache_seconds=prices.cache_seconds)


def input_cost(tokens: int, cached_tokens: int, prices: Prices) -> float:
    """The input side of one request's bill."""
    cached_tokens = min(tokens, cached_tokens)
    return cached_tokens * prices.cached + (tokens - cached_tokens) * prices.write


def usage_cost(usage: Usage, prices: Prices) -> float:
    """What the provider will bill for an answer, by its own count."""
    return input_cost(usage.input_tokens, usage.cached_tokens, prices) + usage.output_tokens * prices.output


def best_level(front: int, budget: Budget, growth: float, prices: Prices) -> float:
    """The prompt size at which rolling over makes a long session cheapest, in tokens.

    Between two rollovers the prompt grows from the target T to a level x. A turn then costs on average
    R g / (x - T) + c (x + T) / 2: the share of a rollover's price R = (T - front)(write - cached) that falls on the
    turn's g new tokens, and reading the prompt from the cache. The sum is smallest at x = T + sqrt(2 R g / c).

    Source: the economic order quantity, Harris 1913; orders are rollovers, stock is the prompt.
    """
    rewritten = max(budget.target - front, 0) * max(prices.write - prices.cached, 0.0)
    if prices.cached <= 0:
        return float(budget.limit)
    return budget.target + sqrt(2 * rewritten * max(growth, 1.0) / prices.cached)


def rollover_pays(prompt: int, fresh: int, front: int, turns: int, budget: Budget, prices: Prices) -> bool:
    """Will rolling over now, with a warm cache, be cheaper than waiting for the limit?

    Args:
        prompt: tokens of the prompt as it stands, of which `fresh` are new in this request and `front` are
            system messages and tools.
        turns: how many turns the session has had; it is expected to have as many more (Lindy's law).
    """
    growth = (prompt - front) / max(turns, 1)
    if prompt < best_level(front, budget, growth, prices):
        return False
    rewritten = max(budget.target - front, 0) * max(prices.write - prices.cached, 0.0)
    saved_a_turn = (prompt - fresh - budget.target) * prices.cached
    return saved_a_turn * (turns + 1) > rewritten


def block_stays(block: int, behind: int, budget: Budget, prices: Prices) -> bool:
    """Is it cheaper to leave a block in the prompt than to take it out, once its user message is no longer the newest?

    Taking it out makes the provider read the `behind` tokens that follow it once more. Leaving it costs `block` tokens
    of cached reading on each turn until the next rollover, and brings that rollover nearer.
    """
    room = max(budget.trigger - budget.target, 1)
    turns_left = room / (2 * max(behind, 1))
    read_on = block * prices.cached * turns_left
    sooner = block / room * budget.target * max(prices.write - prices.cached, 0.0)
    return read_on + sooner < behind * max(prices.write - prices.cached, 0.0)


def block_allowance(front: int, tokens: Sequence[int], answers: Sequence[int], first: int, spent: int) -> int:
    """Tokens that a session may still spend on blocks: what recall costs stays small beside what a session costs.

    Directly, each request so far has read its whole history, mostly from the cache. Blocks may add BLOCK_SHARE of
    those tokens, and `first` at once. That bounds their price at about a tenth of the bill where a cached read costs
    a tenth, and at less where it costs more.

    Args:
        front: tokens of system messages and tools.
        tokens: of each message of the line.
        answers: positions of the assistant's messages; each was a request.
        spent: tokens of the blocks so far.
    """
    asked, total, position = 0, front, 0
    for answer in answers:
        total += sum(tokens[position:answer])
        position = answer
        asked += total
    return max(int(first + BLOCK_SHARE * asked) - spent, 0)
