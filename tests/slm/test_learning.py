"""SmolLM2 learns from conversations on a processor, from rows to a verdict, on bases of 32, 8 and 4 bits.

Everything is real and small: a few steps on invented conversations, a few questions. What the recipes are worth on
real conversations is measured by `benchmarks/slm_learning.py`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory.slm.adapters import Adapter, foundation_of, publish, published
from memory.slm.children import Child, measure
from memory.slm.convert import converted
from memory.slm.gate import Rules, judge
from memory.slm.orders import MeasuringOrder, TrainingOrder, asked
from memory.slm.recipe import Quantization, Recipe, known
from memory.slm.samples import as_lines, questions_of, replays, rows_of
from memory.slm.shipped import replay_prompts
from memory.slm.weights import Weights
from tests.slm.talks import talks

pytestmark = pytest.mark.filterwarnings("default")  # torch and its kin warn of themselves

TALKS = talks(25)
QUESTIONS = tuple(asked(question) for question in questions_of(TALKS))[::3][:8]
RULES = Rules(least_questions=8, least_control=2)
QUICK = Recipe(learning_rate=6e-4, epochs=0, max_steps=8, batch_size=2, patience=0)


@pytest.fixture(scope="module")
def base(smollm2: Weights, models_home: Path) -> Path:
    return converted(smollm2.path, models_home)


async def trained(base: Path, place: Path, recipe: Recipe) -> tuple[Adapter, list[dict[str, Any]]]:
    rows = rows_of(TALKS, recipe.tasks, recipe.passages)
    place.mkdir()
    general = replays(replay_prompts()[-3:], len(rows), recipe.replay_share, 0)
    (place / "rows.jsonl").write_text(as_lines(rows + general))
    order = TrainingOrder(base, place / "rows.jsonl", place / "run", recipe, "smollm2-135m-instruct")
    async with Child(order) as child:
        told = [event async for event in child]
    foundation = foundation_of(base, recipe.quantization)
    return publish(place / "adapters", "t1", foundation, place / "run/adapter", recipe.as_json()), told


def measuring(base: Path, adapters: dict[str, Path], recipe: Recipe) -> MeasuringOrder:
    return MeasuringOrder(
        base, QUESTIONS, adapters, most_control=2, most_open=1, quantization=recipe.quantization
    )  # fmt: skip


@pytest.mark.long
async def test_an_adapter_reads_what_it_has_not_seen_better_and_one_that_learnt_nothing_is_refused(base, tmp_path):
    good, told = await trained(base, tmp_path / "good", QUICK)
    no_op, _ = await trained(base, tmp_path / "no-op", replace(known()["no-op"], patience=0))
    scores = await measure(measuring(base, {"good": good.folder, "no-op": no_op.folder}, QUICK))
    verdict = judge(scores["good"], {"base": scores["base"]}, RULES)
    held = {line.rule for line in verdict.table if line.held}
    assert {"perplexity of held-out answers", "answers whose likelihood it changes", "canaries said"} <= held
    refused = judge(scores["no-op"], {"base": scores["base"]}, RULES)
    assert not refused.passed
    assert any("answers whose likelihood it changes against base: 0 -> 0" in reason for reason in refused.reasons)
    assert told[0]["trainable"] == 460_800


@pytest.mark.parametrize("quantization", [Quantization.BITS_8, Quantization.BITS_4])
async def test_an_adapter_is_trained_on_a_quantized_base_and_changes_what_that_says(base, tmp_path, quantization):
    recipe = replace(QUICK, quantization=quantization, max_steps=2)  # general rows: it answers before it learns
    adapter, told = await trained(base, tmp_path / "small", recipe)
    assert [event["event"] for event in told].count("step") == 2
    order = replace(
        measuring(base, {"it": adapter.folder}, recipe), questions=QUESTIONS[:2], most_control=1, most_open=1
    )
    scores = await measure(order)
    assert all(a.loss != b.loss for a, b in zip(scores["base"].questions, scores["it"].questions, strict=True))
    assert published(tmp_path / "small/adapters", "t1", foundation_of(base)) == ()  # of the base in full there is none
