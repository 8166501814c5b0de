"""The trainer learns, goes on where it was cut, keeps others away from its folder, and says what is wrong."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from memory.errors import Conflict, EngineError, LLMMemoryError, ModelError
from memory.slm.adapters import foundation_of, open_adapter, publish
from memory.slm.children import Child, check_installed
from memory.slm.orders import TrainingOrder, training_order
from memory.slm.recipe import Recipe, Task
from memory.slm.samples import Row, Split, as_lines, replays, rows_of
from memory.slm.shipped import replay_prompts
from tests.slm.small import small_model
from tests.slm.talks import talks

pytestmark = pytest.mark.filterwarnings("default")  # torch and its kin warn of themselves

RECIPE = Recipe(learning_rate=3e-3, epochs=0, max_steps=6, save_steps=2, row_tokens=2_000, batch_size=2, patience=0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "small")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = rows_of(talks(6), [Task.RECALL])
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(as_lines(made))
    return path


@pytest.fixture
def order(small: Path, rows: Path, tmp_path: Path) -> TrainingOrder:
    return TrainingOrder(base=small, rows=rows, folder=tmp_path / "training", recipe=RECIPE, base_name="small")


def here(order: TrainingOrder, stop_after: int = 10**9) -> list[dict[str, Any]]:
    """Train in this process; stop after so many steps."""
    from memory.slm.train import train

    told: list[dict[str, Any]] = []
    train(order, lambda event: told.append(dict(event)), lambda: lambda: steps(told) >= stop_after)
    return told


def steps(events: list[dict[str, Any]]) -> int:
    return sum(event["event"] == "step" for event in events)


def adapter(order: TrainingOrder) -> dict[str, Any]:
    return tensors(order.folder / "adapter/adapter_model.safetensors")


def tensors(path: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


async def until(child: Child, event: str, step: int = 0) -> None:
    async for told in child:
        if told["event"] == event and told.get("step", 0) >= step:
            return
    pytest.fail(f"no {event}")


async def gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            await asyncio.sleep(0.05)


def test_an_order_comes_over_the_pipe_as_it_was(order):
    assert training_order(json.loads(order.line())) == order


def test_training_lowers_the_loss_and_leaves_an_adapter_in_safetensors_alone(order):
    events = here(replace(order, recipe=replace(RECIPE, max_steps=12, learning_rate=1e-2)))
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    assert events[-1]["event"] == "done"
    assert events[-1]["ended_by"] == "steps"
    assert sorted(path.name for path in (order.folder / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert not [path for path in order.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    config = json.loads((order.folder / "adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("small", 8)
    assert str(order.base) not in json.dumps(config)


def test_the_same_order_gives_the_same_adapter_and_another_seed_another(order, tmp_path):
    here(order)
    again = replace(order, folder=tmp_path / "again")
    here(again)
    other = replace(order, folder=tmp_path / "other", recipe=replace(RECIPE, seed=1))
    here(other)
    assert adapter(order) == adapter(again) != adapter(other)


def test_training_that_was_stopped_goes_on_to_the_same_end(order, tmp_path):
    cut = replace(order, folder=tmp_path / "cut")
    first = here(cut, stop_after=3)
    assert first[-1] == {"event": "stopped", "step": 3}
    rest = here(cut)
    assert rest[0]["step"] == 3
    assert steps(rest) == 3
    here(order)
    assert adapter(cut) == adapter(order)


def test_only_as_many_checkpoints_are_kept_as_the_recipe_says(order):
    here(order)
    assert sorted(path.name for path in (order.folder / "checkpoints").iterdir()) == ["00000004", "00000006"]


def test_an_order_that_is_done_is_done_again_without_a_step(order):
    here(order)
    before = adapter(order)
    again = here(order)
    assert steps(again) == 0
    assert again[-1]["event"] == "done"
    assert adapter(order) == before


def test_a_broken_checkpoint_is_told_by_its_place(order):
    here(order, stop_after=4)
    (order.folder / "checkpoints/00000004/optimizer.safetensors").write_bytes(b"spam")
    with pytest.raises(ModelError, match="00000004"):
        here(order)


def test_rates_above_nothing_change_weights_and_a_rate_of_nothing_changes_none(order):
    """The no-op recipe, which the gate has to refuse."""
    here(replace(order, recipe=replace(RECIPE, learning_rate=0.0, max_steps=2)))
    assert {number for name, rows in adapter(order).items() if "lora_B" in name for row in rows for number in row} == {
        0.0
    }


def test_training_ends_where_watched_conversations_are_read_no_better(order, tmp_path):
    """At a rate that destroys the model the first look is the best; two more, and it ends with those weights."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(as_lines(rows_of(talks(10), [Task.RECALL])))
    wild = replace(RECIPE, learning_rate=0.9, max_steps=40, patience=2, warmup_share=0.0)
    events = here(replace(order, rows=rows, recipe=wild))
    assert events[-1]["ended_by"] == "patience"
    assert steps(events) < 40
    looks = {event["step"]: event["loss"] for event in events if event["event"] == "watched"}
    best = min(looks, key=looks.__getitem__)
    assert events[-1]["watched_loss"] == pytest.approx(looks[best], abs=1e-3)
    until_there = replace(order, rows=rows, folder=tmp_path / "best", recipe=replace(wild, save_steps=40))
    here(until_there, stop_after=best)
    assert adapter(order) == tensors(until_there.folder / f"checkpoints/{best:08}/weights.safetensors")


def test_general_requests_are_answered_by_the_base_once_and_learnt_beside_the_rest(order, tmp_path):
    rows = tmp_path / "rows.jsonl"
    general = replays(replay_prompts(), 8, 0.2, 0)
    rows.write_text(order.rows.read_text() + as_lines(general))
    with_replay = replace(order, rows=rows, recipe=replace(RECIPE, max_steps=1))
    here(with_replay)
    kept = (order.folder / "replay.jsonl").read_text()
    assert [json.loads(line)[0] for line in kept.splitlines()] == [row.messages[0][1] for row in general]
    here(with_replay)
    assert (order.folder / "replay.jsonl").read_text() == kept


def test_a_stammering_answer_of_the_base_teaches_nothing(order, tmp_path):
    """Nor does one without a word."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(order.rows.read_text() + as_lines(replays(replay_prompts(), 16, 0.2, 0)))
    order.folder.mkdir()
    said = ("A drink made of leaves.", "no " * 40, "")
    (order.folder / "replay.jsonl").write_text("\n".join(json.dumps(["What is tea?", one, True]) for one in said))
    alone = here(replace(order, folder=tmp_path / "alone"), stop_after=0)[0]["rows"]
    assert here(replace(order, rows=rows), stop_after=0)[0]["rows"] == alone + 1


def test_training_ends_in_time_with_what_it_has(order):
    events = here(replace(order, most_seconds=1e-6))
    assert events[-1]["ended_by"] == "seconds"
    assert steps(events) == 1
    assert adapter(order)


def test_loss_is_counted_on_the_reply_alone(small):
    from memory.slm.base import load
    from memory.slm.chat import IGNORED, batch_of, encode

    base = load(small)
    chat = encode(base, (("user", "What is it?"), ("assistant", "A pear.")))
    longer = encode(base, (("user", "What is it, then, in so many words?"), ("assistant", "A pear.")))
    batch = batch_of(base, [chat, longer])
    for labels in batch.labels.tolist():
        learnt = [label for label in labels if label != IGNORED]
        assert base.tokenizer.decode(learnt) == "A pear.<|im_end|>"
        assert labels[-len(learnt) :] == learnt


def test_drift_is_nothing_before_training_and_grows_with_it(order):
    """An adapter that changes nothing has not drifted; one that was trained without mercy has, and is pulled back."""
    from memory.slm.base import load
    from memory.slm.chat import batch_of, drifts, encode
    from memory.slm.train import with_adapter

    base = load(order.base)
    chat = encode(base, (("user", "What is it?"), ("assistant", "A pear.")))
    model = with_adapter(base, RECIPE)
    carrying = replace(base, model=model)
    batch = batch_of(carrying, [chat])
    assert drifts(carrying, batch).sum().item() == 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    drift = drifts(carrying, batch)
    assert (drift >= 0).all()
    drift.sum().backward()
    assert drift.sum().item() > 0
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_general_rows_hold_the_trained_model_to_the_bare_one(order, tmp_path):
    """With a pull it stays near what the bare model says to them; they themselves teach nothing."""
    free, held = (drift_after(replace(order, folder=tmp_path / f"{pull}"), pull) for pull in (0, 50))
    assert 0 < held < free / 3


GENERAL = ("What is tea?", "A drink of leaves.")


def drift_after(order: TrainingOrder, pull: float) -> float:
    """How far a trained model is from the bare one on a general row."""
    from memory.slm.base import attach, load
    from memory.slm.chat import batch_of, drifts, encode

    rows = order.folder.parent / f"{pull}.jsonl"
    own = Row((("user", "Which colour?"), ("assistant", "Quite red.")), Task.RECALL, "c", ("t",), Split.TRAIN)
    asked = Row((("user", GENERAL[0]),), Task.REPLAY, "", (), Split.TRAIN)
    rows.write_text(as_lines([own, asked]))
    order.folder.mkdir()
    (order.folder / "replay.jsonl").write_text(json.dumps([*GENERAL, True]))  # what the base has said
    recipe = replace(RECIPE, learning_rate=2e-2, max_steps=12, batch_size=1, anchor=pull)
    here(replace(order, rows=rows, recipe=recipe))
    base = load(order.base)
    foundation = foundation_of(order.base)
    kept = publish(order.folder / "home", "t1", foundation, order.folder / "adapter", {})
    carrying, _ = attach(base, open_adapter(kept.folder, foundation))
    batch = batch_of(carrying, [encode(base, (("user", GENERAL[0]), ("assistant", GENERAL[1])))])
    return float(drifts(carrying, batch).detach().sum())


def test_what_stands_beside_a_row_in_its_batch_changes_nothing(small):
    from memory.slm.base import load
    from memory.slm.chat import encode, likelihoods

    base = load(small)
    chats = [encode(base, (("user", "so " * n), ("assistant", "A pear."))) for n in (1, 20, 5)]
    assert likelihoods(base, chats, 3) == pytest.approx(likelihoods(base, chats, 1), rel=1e-5)


def test_a_beginning_that_prompts_share_is_computed_once_and_changes_nothing(small):
    from memory.slm.base import load
    from memory.slm.chat import Shared, answers, encode, likelihoods

    base = load(small)
    opening = "Read this first. " * 5
    chats = [encode(base, (("user", opening + "so " * n), ("assistant", "A pear."))) for n in (1, 20, 5)]
    prompts = [encode(base, (("user", opening + "so " * n),)) for n in (1, 20, 5)]
    assert Shared.of(base, chats).tokens > 80
    alone = [likelihoods(base, [chat], 1)[0] for chat in chats]
    assert likelihoods(base, chats, 2) == pytest.approx(alone, rel=1e-5)
    assert answers(base, prompts, 12, 2) == [answers(base, [prompt], 12, 1)[0] for prompt in prompts]


@pytest.mark.parametrize("steps_", [0, 1, 7, 19])
def test_each_row_is_seen_once_in_an_epoch(steps_):
    from memory.slm.chat import Encoded
    from memory.slm.train import Lesson, step_batches

    taught = [Lesson(Encoded((n,))) for n in range(20)]
    recipe = Recipe(batch_size=2, accumulation=2, seed=steps_)
    first = [row for step in range(5) for batch in step_batches(taught, recipe, step) for row in batch]
    assert sorted(first, key=lambda row: row.chat.prompt) == taught
    assert first != taught


def test_each_step_has_its_share_of_general_rows():
    from memory.slm.chat import Encoded
    from memory.slm.train import Lesson, step_batches

    taught = [Lesson(Encoded((n,)), anchors=n < 5) for n in range(20)]
    for step in range(10):  # two epochs
        ((*rows,),) = step_batches(taught, Recipe(batch_size=4), step)
        assert sum(row.anchors for row in rows) == 1


@pytest.mark.parametrize(
    ("recipe", "rows_", "expected"),
    [
        (Recipe(epochs=1, batch_size=4), 30, 8),
        (Recipe(epochs=2, batch_size=4, accumulation=2), 30, 8),
        (Recipe(epochs=1, max_steps=3), 30, 3),
        (Recipe(epochs=0, max_steps=50), 30, 50),
    ],
)
def test_steps_follow_from_epochs_up_to_their_limit(recipe, rows_, expected):
    from memory.slm.train import steps_of

    assert steps_of(recipe, rows_) == expected


EMPTY = Row((("user", "Hi"), ("assistant", "Hello")), Task.ANSWER, "c", ("t",), Split.HELD_OUT)

WRONG: dict[str, tuple[Callable[[TrainingOrder, Path], TrainingOrder], str]] = {
    "no folder": (lambda o, t: replace(o, base=t / "nowhere"), "there is no folder"),
    "no weights": (lambda o, t: replace(o, base=t), r"config.json, tokenizer.json, \*.safetensors missing"),
    "no chat template": (lambda o, t: replace(o, base=small_model(t / "base", template=None)), "no chat template"),
    "weights that are cut": (lambda o, t: replace(o, base=cut_model(t / "base")), "does not load|ends"),
    "no rows": (lambda o, t: replace(o, rows=written(t / "rows", "")), "data set is empty"),
    "only held-out rows": (lambda o, t: replace(o, rows=written(t / "rows", as_lines([EMPTY]))), "data set is empty"),
    "rows that are none": (lambda o, t: replace(o, rows=written(t / "rows", "{}\n")), "line 1"),
    "no file of rows": (lambda o, t: replace(o, rows=t / "none"), "cannot read the rows"),
    "rows that are too long": (lambda o, t: replace(o, recipe=replace(RECIPE, row_tokens=16)), "row_tokens"),
    "modules that are not there": (
        lambda o, t: replace(o, recipe=replace(RECIPE, target_modules=("W_pack",))), "no modules W_pack",
    ),
    "no GPU": (lambda o, t: replace(o, recipe=replace(RECIPE, device="cuda")), "no GPU"),
    "too large for a processor": (
        lambda o, t: replace(o, base=small_model(t / "large", hidden_size=4096, intermediate_size=32_768)),
        "million parameters",
    ),
    "another order's folder": (lambda o, t: replace(claimed(o), recipe=replace(RECIPE, seed=5)), "take a new folder"),
}  # fmt: skip


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def cut_model(folder: Path) -> Path:
    weights = small_model(folder) / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return folder


def claimed(order: TrainingOrder) -> TrainingOrder:
    order.folder.mkdir()
    (order.folder / "order").write_text("of another")
    return order


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told(order, tmp_path, what):
    spoil, words = WRONG[what]
    spoilt = spoil(order, tmp_path)
    spoilt.folder.mkdir(exist_ok=True)
    with pytest.raises(LLMMemoryError, match=words):
        here(spoilt)
    assert not (order.folder / "adapter").exists()


def test_what_is_not_installed_is_told_with_the_way_to_get_it():
    check_installed(["json"])
    with pytest.raises(EngineError, match=r"learning needs no_such_thing: `pip install 'infold\[slm\]'`"):
        check_installed(["json", "no_such_thing"])


async def test_a_killed_trainer_goes_on_to_the_end_that_it_would_have_had(order, tmp_path):
    killed = replace(order, folder=tmp_path / "killed")
    with pytest.raises(ModelError, match="SIGKILL"):
        await killed_at_first_save(killed)
    async with Child(killed) as child:
        events = [told async for told in child]
    assert events[0]["step"] >= 2
    assert events[-1]["event"] == "done"
    here(order)
    assert adapter(killed) == adapter(order)


async def killed_at_first_save(order: TrainingOrder) -> None:
    async with Child(order) as child:
        async for told in child:
            if told["event"] == "saved":
                os.kill(child.pid, signal.SIGKILL)


async def test_one_trainer_holds_a_folder_and_a_second_is_told_which(order):
    long = replace(order, recipe=replace(RECIPE, max_steps=100_000))
    async with Child(long) as first:
        await until(first, "step")
        async with Child(long) as second:
            with pytest.raises(Conflict, match=f"process {first.pid}"):
                await last(second)
        first.stop()
        assert (await last(first))["event"] == "stopped"


async def last(child: Child) -> dict[str, Any]:
    return [told async for told in child][-1]


async def test_a_trainer_ends_when_whoever_started_it_is_killed(order):
    """A parent of its own starts it, says its number, and is killed; the folder is free again."""
    from memory.slm.train import alone

    long = replace(order, recipe=replace(RECIPE, max_steps=100_000))
    parent = await asyncio.create_subprocess_exec(
        *("python", "-c", PARENT, long.line()), stdout=asyncio.subprocess.PIPE
    )
    pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(120):
        await gone(pid)
    with alone(order.folder):
        pass


PARENT = """
import asyncio, json, sys
from memory.slm.children import Child, check_installed
from memory.slm.orders import training_order

async def main():
    async with Child(training_order(json.loads(sys.argv[1]))) as child:
        async for told in child:
            if told["event"] == "step":
                print(child.pid, flush=True)
                await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_a_trainer_that_needs_more_memory_than_it_may_have_says_so(order):
    async with Child(replace(order, most_memory_mb=300)) as child:
        with pytest.raises(ModelError, match="memory"):
            await last(child)
