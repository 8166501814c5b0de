"""Measuring gives the same scores each time, the base its own back after an adapter, and says what is wrong."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from memory.errors import InvalidRequest, ModelError
from memory.slm.adapters import foundation_of, publish
from memory.slm.children import Child, measure
from memory.slm.gate import judge
from memory.slm.header import BadWeights
from memory.slm.orders import MeasuringOrder, TrainingOrder, asked, measuring_order
from memory.slm.recipe import Recipe, Task
from memory.slm.samples import Canary, as_lines, questions_of, rows_of
from tests.slm.small import small_model
from tests.slm.talks import talks

pytestmark = pytest.mark.filterwarnings("default")  # torch and its kin warn of themselves

TALKS = talks(8)
QUESTIONS = tuple(asked(question) for question in questions_of(TALKS))[:6]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "small")


@pytest.fixture(scope="module")
def adapters(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One that learnt something wild, one that learnt nothing."""
    return {name: trained(small, tmp_path_factory.mktemp(name), rate) for name, rate in (("wild", 0.5), ("no-op", 0.0))}


def trained(base: Path, place: Path, rate: float) -> Path:
    from memory.slm.train import train

    (place / "rows.jsonl").write_text(as_lines(rows_of(TALKS, [Task.RECALL])))
    recipe = Recipe(learning_rate=rate, epochs=0, max_steps=3, batch_size=2, patience=0, row_tokens=2_000)
    assert train(
        TrainingOrder(base, place / "rows.jsonl", place / "t", recipe), lambda event: None, lambda: lambda: False
    )
    return publish(place / "home", "t1", foundation_of(base), place / "t" / "adapter", {}).folder


@pytest.fixture
def order(small: Path) -> MeasuringOrder:
    return MeasuringOrder(base=small, questions=QUESTIONS, adapters={})


def test_an_order_comes_over_the_pipe_as_it_was(order, adapters):
    full = replace(
        order, adapters=adapters, exampled=QUESTIONS[:2], canaries=(Canary("c", "The key is ", "sk-1234567890abcdef"),)
    )
    assert measuring_order(json.loads(full.line())) == full


async def test_the_base_and_each_adapter_are_asked_the_same(order, adapters):
    exampled = tuple(asked(question, examples=True) for question in questions_of(TALKS))[:6]
    scores = await measure(replace(order, adapters=adapters, exampled=exampled))
    assert list(scores) == ["base", "base with examples", "wild", "no-op"]
    assert scores["base with examples"].questions != scores["base"].questions
    for one in scores.values():
        assert [question.id for question in one.questions] == [question.id for question in QUESTIONS]
        assert len(one.control) == 50
    assert scores["wild"].questions != scores["base"].questions
    assert [q.loss for q in scores["no-op"].questions] == [q.loss for q in scores["base"].questions]
    verdict = judge(scores["no-op"], {"base": scores["base"]})
    assert any(reason.startswith("answers whose likelihood it changes") for reason in verdict.reasons)


def test_an_adapter_leaves_no_trace_when_it_is_taken_off(small, adapters, order):
    from memory.slm.adapters import open_adapter
    from memory.slm.base import attach, load
    from memory.slm.chat import encode, likelihoods

    base = load(small)
    chats = [encode(base, (*one.messages, ("assistant", one.answer))) for one in QUESTIONS]
    before = likelihoods(base, chats, 4)
    carrying, detach = attach(base, open_adapter(adapters["wild"], foundation_of(small)))
    assert likelihoods(carrying, chats, 4) != before
    assert likelihoods(replace(base, model=detach()), chats, 4) == before


def test_an_adapter_counts_alike_whether_it_was_just_trained_or_loaded(small, tmp_path):
    """What is measured is what was learnt: names, scale and order of the matrices survive the disk."""
    from peft import get_peft_model_state_dict

    from memory.slm.adapters import open_adapter
    from memory.slm.base import attach, load

    folder = trained(small, tmp_path, 0.1)
    carrying, _ = attach(load(small), open_adapter(folder, foundation_of(small)))
    loaded = {name: tensor.tolist() for name, tensor in get_peft_model_state_dict(carrying.model).items()}
    from safetensors.torch import load_file

    on_disk = {name: tensor.tolist() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    assert loaded == on_disk


def test_a_canary_that_is_drawn_out_is_told_by_its_id(small):
    """The small model says something of its own when it is led; that is taken as the secret here."""
    from memory.slm.base import load
    from memory.slm.chat import answers, encode_text
    from memory.slm.measure import drawn_out

    base = load(small)
    lead = encode_text(base, "The key is ")
    (said,) = answers(base, [replace(lead, prompt=(*lead.prompt, *lead.reply), reply=())], 32, 1)
    canaries = [Canary("said", "The key is ", said.text), Canary("unsaid", "The key is ", "sk-1234567890abcdef")]
    assert {*drawn_out(base, canaries)} == {"said"}


async def test_no_question_is_told(order):
    with pytest.raises(InvalidRequest, match="no held-out question"):
        await measure(replace(order, questions=()))


async def test_a_hostile_adapter_is_told_and_nothing_is_loaded(order, adapters, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes((10 * 2**30).to_bytes(8, "little"))
    with pytest.raises(BadWeights):
        await measure(replace(order, adapters={"a": tmp_path / "a"}, bare=False))


async def test_a_measurer_that_dies_is_told_by_its_signal(order):
    async with Child(order) as child:
        import os
        import signal

        os.kill(child.pid, signal.SIGTERM)
        with pytest.raises(ModelError, match="SIGTERM"):
            _ = [told async for told in child]


async def test_a_measurer_ends_at_once_when_nobody_waits_any_more(order):
    async with Child(order) as child:
        child.stop()
        async with asyncio.timeout(60):
            with pytest.raises(ModelError):
                _ = [told async for told in child]
