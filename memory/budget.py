"""How many tokens a prompt may have, where a rollover becomes due, and where it ends."""

from memory.types import Budget, Model

SAFETY_PERCENT = 1  # of the window: providers' templates differ from our count
TRIGGER_PERCENT = 75  # of the window
TRIGGER_LIMIT_PERCENT = 95  # of the limit
TARGET_LIMIT_PERCENT = 50  # of the limit
ROOM_PERCENT = 10  # of the limit: what stays beside the pinned front after a rollover
GAP_PERCENT = 20  # of the limit: rollovers closer together than this do not pay
LEAST_RESERVE = 1_024
RESERVE_SHARE = 8  # a reserve nobody asked for is at most one eighth of the window


def budget(model: Model, asked_output_tokens: int | None, pinned_tokens: int, target_share: float = 0.25) -> Budget:
    """Divide a model's window between answer, prompt and what a rollover leaves.

    reserve = what the client asked for, else min(output limit, max(1,024, window / 8)); 0 where the
              output has a limit of its own
    limit   = window - reserve - 1 % of the window
    trigger = min(75 % of the window, 95 % of the limit)
    target  = max(min(target_share of the window, 50 % of the limit), pinned + 10 % of the limit)

    Where trigger - target is under 20 % of the limit, the trigger is the limit: rollovers that come
    close together cost more than they save. What is subtracted rounds up and what is left rounds
    down, so the parts never add up to more than the window. The target is at most the limit.

    Args:
        model: with a known window.
        asked_output_tokens: `max_tokens` or `max_completion_tokens`; None when the client said nothing.
        pinned_tokens: the pinned front: system and developer messages before the first user message,
            and the tools.
        target_share: of the window, 0 to 1; `compression.target`.

    Raises:
        ValueError: the model's window is unknown; such a request is a wire and has no budget.
    """
    if model.window is None:
        raise ValueError(f"the window of {model.name!r} is unknown, so there is no budget")
    window = model.window
    reserve = output_reserve(model, window, asked_output_tokens)
    limit = max(0, window - reserve - percent_up(window, SAFETY_PERCENT))
    trigger = min(percent(window, TRIGGER_PERCENT), percent(limit, TRIGGER_LIMIT_PERCENT))
    wanted = min(int(window * target_share), percent(limit, TARGET_LIMIT_PERCENT))
    target = min(limit, max(wanted, pinned_tokens + percent(limit, ROOM_PERCENT)))
    if (trigger - target) * 100 < limit * GAP_PERCENT:
        trigger = limit
    return Budget(window=window, reserve=reserve, limit=limit, trigger=trigger, target=target)


def output_reserve(model: Model, window: int, asked_output_tokens: int | None) -> int:
    """Tokens of the window kept for the answer."""
    if model.separate_output:
        return 0
    if asked_output_tokens is not None:
        return min(window, max(0, asked_output_tokens))
    share = max(LEAST_RESERVE, -(-window // RESERVE_SHARE))
    return min(window, share if model.max_output_tokens is None else min(share, model.max_output_tokens))


def percent(tokens: int, percents: int) -> int:
    return tokens * percents // 100


def percent_up(tokens: int, percents: int) -> int:
    return -(-tokens * percents // 100)
