"""Windows are divided so that answer and prompt always fit, and rollovers are worth their price."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.budget import budget
from memory.types import Budget, Model


def model(window: int | None, output: int | None = None, *, separate: bool = False) -> Model:
    return Model(name="m", window=window, max_output_tokens=output, separate_output=separate)


@pytest.mark.parametrize(
    ("case", "expected"),
    {
        "the client's max_tokens is the reserve": (
            budget(model(8_448), 256, 0),
            Budget(window=8_448, reserve=256, limit=8_107, trigger=6_336, target=2_112),
        ),
        "unasked: an eighth of the window": (
            budget(model(128_000, 16_384), None, 0),
            Budget(window=128_000, reserve=16_000, limit=110_720, trigger=96_000, target=32_000),
        ),
        "unasked: no more than the output limit": (
            budget(model(128_000, 4_096), None, 0),
            Budget(window=128_000, reserve=4_096, limit=122_624, trigger=96_000, target=32_000),
        ),
        "unasked, small window: 1,024 at least": (
            budget(model(4_096), None, 0),
            Budget(window=4_096, reserve=1_024, limit=3_031, trigger=2_879, target=1_024),
        ),
        "an output limit of its own needs no reserve": (
            budget(model(272_000, 128_000, separate=True), 50_000, 0),
            Budget(window=272_000, reserve=0, limit=269_280, trigger=204_000, target=68_000),
        ),
        "a large reserve pulls the trigger under 95 % of the limit": (
            budget(model(32_000), 16_000, 0),
            Budget(window=32_000, reserve=16_000, limit=15_680, trigger=14_896, target=7_840),
        ),
        "the pinned front lifts the target": (
            budget(model(32_000), 1_000, 12_000),
            Budget(window=32_000, reserve=1_000, limit=30_680, trigger=24_000, target=15_068),
        ),
        "trigger and target too close: the trigger is the limit": (
            budget(model(32_000), 1_000, 20_000),
            Budget(window=32_000, reserve=1_000, limit=30_680, trigger=30_680, target=23_068),
        ),
    }.values(),
)
def test_a_budget_follows_the_documented_formulas(case: Budget, expected: Budget) -> None:
    assert case == expected


@given(
    window=st.integers(1, 2_000_000),
    output=st.none() | st.integers(1, 300_000),
    asked=st.none() | st.integers(-5, 3_000_000),
    pinned=st.integers(0, 2_000_000),
    share=st.floats(0.05, 0.7),
    separate=st.booleans(),
)
def test_a_prompt_at_its_limit_and_its_answer_never_exceed_the_window(window, output, asked, pinned, share, separate):
    made = budget(model(window, output, separate=separate), asked, pinned, share)

    assert made.limit + made.reserve <= window
    assert 0 <= made.trigger <= made.limit
    assert 0 <= made.target <= made.limit
    assert made.trigger == made.limit or made.trigger - made.target >= made.limit * 0.2


def test_asking_for_more_output_than_the_window_has_leaves_an_empty_limit():
    made = budget(model(8_192), 100_000, 500)

    assert (made.limit, made.trigger, made.target) == (0, 0, 0)


def test_an_unknown_window_has_no_budget():
    with pytest.raises(ValueError, match="unknown"):
        budget(model(None), 256, 0)
