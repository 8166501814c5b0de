"""Training an adapter, as a child process: `python -m memory.slm.train`.

One line of JSON on standard input is the order; lines of JSON on standard output say how it goes, the last one
`{"event": "done", ...}`, `{"event": "stopped", ...}` or `{"event": "error", "kind": ..., "message": ...}`. When
standard input ends, so does training: it saves where it stands, and the same order goes on from there. So it does after
a `kill -9`, from the last checkpoint.

The folder of an order holds `checkpoints/`, `replay.jsonl` and at the end `adapter/`. Two trainers never share one.
"""

import fcntl
import json
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

from memory.errors import Conflict, InvalidRequest, LLMMemoryError, ModelError
from memory.slm import child
from memory.slm.base import Base, explained, keep_trainable, limit_memory, load
from memory.slm.chat import IGNORED, Encoded, answers, batch_of, drifts, encode, likelihoods, losses
from memory.slm.checkpoints import (
    Checkpoint,
    Progress,
    latest,
    optimizer_tensors,
    restore_optimizer,
    save,
    solid,
)
from memory.slm.marking import repeated
from memory.slm.orders import TrainingOrder, training_order
from memory.slm.recipe import ALL_LINEAR, Recipe, Task
from memory.slm.samples import Row, Split, rows_from

REPLAY_TOKENS = 96  # of a general answer
REPLAY_BATCH = 16
MOST_REPEATED = 0.3  # an answer of the base that stammers more than this teaches nothing
MOST_WATCHED = 48  # rows whose loss is looked at

Say = Callable[[Mapping[str, Any]], None]


def main() -> int:
    """Exit code 0 when the adapter is there, 1 when something went wrong, 3 when it was told to stop."""
    order = training_order(child.told())
    torch.set_num_threads(order.threads)
    limit_memory(order.most_memory_mb)
    try:
        with alone(order.folder):
            return 0 if train(order, say, lambda: child.save_first().is_set) else 3
    except (LLMMemoryError, MemoryError, RuntimeError) as error:
        child.say(event="error", **explained(error, order.most_memory_mb))
        return 1


def say(words: Mapping[str, Any]) -> None:
    child.say(**words)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock ends with this process, however it ends.

    Raises:
        Conflict: another trainer holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise Conflict(f"another trainer (process {lock.read().strip()}) works in {folder}") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def train(order: TrainingOrder, say: Say, held: Callable[[], Callable[[], bool]]) -> bool:
    """Train, or go on training; False where it was told to stop before the end.

    Args:
        held: called when there is something to save; gives what tells whether to stop.
    """
    recipe = order.recipe
    rows = read_rows(order)
    claim(order)
    base = load(order.base, recipe.quantization, recipe.precision, recipe.device, order.force)
    keep_trainable(base)
    taught, watched = lessons(base, rows, order)
    carrying = replace(base, model=with_adapter(base, recipe))
    run = Run(carrying, order, taught, watched)
    run.resume()
    say(run.told(rows))
    ended_by = run.go(say, held())
    if ended_by == "stopped":
        say({"event": "stopped", "step": run.progress.step})
        return False
    run.finish()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    say(
        {
            "event": "done",
            "ended_by": ended_by,
            "adapter": str(order.folder / "adapter"),
            "peak_mb": peak_mb,
            **run.summary(),
        }
    )
    return True


def read_rows(order: TrainingOrder) -> tuple[Row, ...]:
    try:
        rows = rows_from(order.rows.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read the rows in {order.rows}: {type(error).__name__}", "rows") from error
    if not any(row.split is Split.TRAIN and row.task is not Task.REPLAY for row in rows):
        raise InvalidRequest("the data set is empty: there is no row to train on", "rows")
    return rows


def claim(order: TrainingOrder) -> None:
    """Checkpoints of one order are of no use to another.

    Raises:
        Conflict: the folder belongs to another order.
    """
    mark = blake2b(f"{order.recipe.text()}\n{order.base_name}\n".encode() + order.rows.read_bytes()).hexdigest()
    order.folder.mkdir(parents=True, exist_ok=True)
    place = order.folder / "order"
    if place.exists() and place.read_text() != mark:
        raise Conflict(f"{order.folder} holds a training with other rows or another recipe; take a new folder")
    place.write_text(mark)


@dataclass(frozen=True, slots=True)
class Lesson:
    chat: Encoded
    anchors: bool = False  # it is what the bare model says; not to be learnt, only not to be left


def lessons(base: Base, rows: Sequence[Row], order: TrainingOrder) -> tuple[list[Lesson], list[Encoded]]:
    """Rows to train on and rows to watch, as tokens; those that are too long are left out."""
    most = order.recipe.row_tokens
    own = [row for row in rows if row.task is not Task.REPLAY]
    parts = {
        split: [one for row in own if row.split is split and len(one := encode(base, row.messages)) <= most]
        for split in (Split.TRAIN, Split.WATCHED)
    }
    if not parts[Split.TRAIN]:
        raise InvalidRequest(f"every row is longer than row_tokens ({most:,}); raise it", "row_tokens")
    replay = [row for row in rows if row.task is Task.REPLAY]
    taught = [Lesson(one) for one in parts[Split.TRAIN]]
    taught += [Lesson(one, anchors=True) for one in replayed(base, replay, order.folder) if len(one) <= most]
    return taught, parts[Split.WATCHED][:MOST_WATCHED]


def replayed(base: Base, rows: Sequence[Row], folder: Path) -> Iterator[Encoded]:
    """General requests with what the untrained model answers them; kept, so that going on sees the same."""
    place = folder / "replay.jsonl"
    prompts = [row.messages[0][1] for row in rows]
    if not place.exists():
        told = answers(base, [encode(base, row.messages) for row in rows], REPLAY_TOKENS, REPLAY_BATCH)
        lines = [json.dumps([prompt, said.text, said.ended]) for prompt, said in zip(prompts, told, strict=True)]
        part = place.with_suffix(".part")
        part.write_text("\n".join(lines))
        part.rename(place)
    for line in place.read_text().splitlines():
        prompt, text, ended = json.loads(line)
        if text and repeated(text) <= MOST_REPEATED:
            yield encode(base, (("user", prompt), ("assistant", text)), ends=ended)


def with_adapter(base: Base, recipe: Recipe) -> Any:
    """The model with a fresh adapter, which changes nothing yet; only the adapter learns."""
    torch.manual_seed(recipe.seed)
    targets = ALL_LINEAR if recipe.target_modules == (ALL_LINEAR,) else list(recipe.target_modules)
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        bias=recipe.bias.value,
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(base.model, config)
    except ValueError as error:
        names = ", ".join(recipe.target_modules)
        raise InvalidRequest(f"the model has no modules {names}", "target_modules") from error
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


class Run:
    """One training on its way."""

    def __init__(self, base: Base, order: TrainingOrder, taught: Sequence[Lesson], watched: Sequence[Encoded]) -> None:
        self._base, self._order, self._recipe = base, order, order.recipe
        self._taught, self._watched = taught, watched
        self._parameters = [p for p in base.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=order.recipe.learning_rate, weight_decay=0.0)
        self._best: Mapping[str, torch.Tensor] | None = None
        self.steps = steps_of(order.recipe, len(taught))
        self.progress = Progress()

    def resume(self) -> None:
        found = latest(self._order.folder / "checkpoints")
        if found is None:
            return
        self.progress, self._best = found.progress, found.best
        set_peft_model_state_dict(self._base.model, dict(found.weights))
        restore_optimizer(self._optimizer, found.optimizer)
        torch.set_rng_state(found.draws)

    def told(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {
            "event": "loaded",
            "parameters": self._base.parameters,
            "trainable": sum(p.numel() for p in self._parameters),
            "rows": len(self._taught),
            "watched": len(self._watched),
            "tokens": sum(len(row.chat) for row in self._taught),
            "steps": self.steps,
            "step": self.progress.step,
        }

    def go(self, say: Say, stopping: Callable[[], bool]) -> str:
        """Step until the end; gives what ended it: steps, seconds, patience, stopped."""
        began, before = time.monotonic(), self.progress.seconds
        batches = self._batches()
        while self.progress.step < self.steps:
            if stopping():
                self._save()
                return "stopped"
            if 0 < self._order.most_seconds <= self.progress.seconds:
                return "seconds"
            self._step(next(batches))
            self.progress = replace(self.progress, seconds=before + time.monotonic() - began)
            say(
                {
                    "event": "step",
                    "step": self.progress.step,
                    "steps": self.steps,
                    "loss": self.progress.losses[-1],
                    "tokens": self.progress.tokens,
                    "seconds": round(self.progress.seconds, 2),
                }
            )
            if self.progress.step % self._recipe.save_steps == 0 or self.progress.step == self.steps:
                self._look(say)
                self._save()
                say({"event": "saved", "step": self.progress.step})
                if 0 < self._recipe.patience <= self.progress.looks_since_best:
                    return "patience"
        return "steps"

    def _batches(self) -> Iterator[list[list[Lesson]]]:
        """The batches of each step from the present one on, however often training was cut."""
        step = self.progress.step
        while True:
            yield step_batches(self._taught, self._recipe, step)
            step += 1

    def _step(self, batches: Sequence[Sequence[Lesson]]) -> None:
        self._base.model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * rate(self.progress.step, self.steps, self._recipe.warmup_share)
        total = sum(self._learn(rows, len(batches)) for rows in batches)
        seen = sum(len(row.chat) for rows in batches for row in rows)
        if all(parameter.grad is None for parameter in self._parameters):
            raise ModelError("nothing is learnt: no gradient comes back through the model in this form")
        torch.nn.utils.clip_grad_norm_(self._parameters, self._recipe.max_grad_norm or math.inf)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        told = (*self.progress.losses, round(total, 4))
        self.progress = replace(
            self.progress, step=self.progress.step + 1, tokens=self.progress.tokens + seen, losses=told
        )

    def _learn(self, rows: Sequence[Lesson], of: int) -> float:
        """Add the gradient of one batch, the `of`-th part of a step; gives its part of the loss."""
        loss = torch.zeros((), device=self._base.device)
        for anchors in (False, True):
            if some := [row.chat for row in rows if row.anchors is anchors]:
                batch = batch_of(self._base, some)
                each = drifts(self._base, batch) * self._recipe.anchor if anchors else losses(self._base, batch)
                lengths = (batch.wanted != IGNORED).sum(-1)
                loss = loss + (each.sum(-1) / lengths).sum() / len(rows) / of  # a short answer counts like a long one
        if not torch.isfinite(loss):
            raise ModelError(f"the loss is no number at step {self.progress.step + 1}; lower learning_rate")
        loss.backward()
        return float(loss.item())

    def _look(self, say: Say) -> None:
        """How well it reads conversations that it does not learn from; the best weights so far are kept."""
        if not self._watched or not self._recipe.patience:
            return
        self._base.model.eval()
        found = likelihoods(self._base, self._watched, self._recipe.batch_size)
        loss = sum(found) / len(found)
        better = self.progress.best_loss is None or loss < self.progress.best_loss
        if better:
            self._best = solid(get_peft_model_state_dict(self._base.model))
        since = 0 if better else self.progress.looks_since_best + 1
        best = loss if better else self.progress.best_loss
        self.progress = replace(self.progress, best_loss=best, looks_since_best=since)
        say({"event": "watched", "step": self.progress.step, "loss": round(loss, 4)})

    def _save(self) -> None:
        weights = get_peft_model_state_dict(self._base.model)
        optimizer = optimizer_tensors(self._optimizer)
        checkpoint = Checkpoint(self.progress, weights, self._best, optimizer, torch.get_rng_state())
        save(self._order.folder / "checkpoints", checkpoint, self._recipe.save_total_limit)

    def finish(self) -> None:
        """Write the adapter: the weights that read the watched rows best, else the last ones."""
        weights = self._best or get_peft_model_state_dict(self._base.model)
        place, part = self._order.folder / "adapter", self._order.folder / "adapter.part"
        part.mkdir(exist_ok=True)
        save_file(solid(weights), part / "adapter_model.safetensors")
        (part / "adapter_config.json").write_text(json.dumps(config_of(self._base.model, self._order), indent=1))
        if not place.exists():  # an order that is given again after its end changes nothing
            part.rename(place)

    def summary(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 2),
            "first_loss": progress.losses[0] if progress.losses else None,
            "last_loss": progress.losses[-1] if progress.losses else None,
            "watched_loss": progress.best_loss,
        }


def steps_of(recipe: Recipe, rows: int) -> int:
    by_epochs = math.ceil(recipe.epochs * rows / (recipe.batch_size * recipe.accumulation))
    return min(recipe.max_steps, by_epochs) if recipe.max_steps and recipe.epochs else recipe.max_steps or by_epochs


def rate(step: int, steps: int, warmup_share: float) -> float:
    """Share of the learning rate at a step: up in a line, then down in a line to nearly nothing."""
    warm = steps * warmup_share
    if step < warm:
        return (step + 1) / (warm + 1)
    return (steps - step) / max(steps - warm, 1)


def step_batches(rows: Sequence[Lesson], recipe: Recipe, step: int) -> list[list[Lesson]]:
    """The batches of one step, from the seed alone: each row once in an epoch, in another order each time."""
    size = recipe.batch_size * recipe.accumulation
    chosen = []
    for place in range(step * size, (step + 1) * size):
        epoch, at = divmod(place, len(rows))
        chosen.append(rows[shuffled(rows, recipe.seed, epoch)[at]])
    return [chosen[start : start + recipe.batch_size] for start in range(0, size, recipe.batch_size)]


def shuffled(rows: Sequence[Lesson], seed: int, epoch: int) -> list[int]:
    """Places of rows, in another order each time; general rows evenly among the others, so that each step is held."""
    rng = random.Random(f"{seed}/{epoch}")
    places: list[tuple[float, int]] = []
    for anchors in (False, True):
        kind = [place for place, row in enumerate(rows) if row.anchors is anchors]
        rng.shuffle(kind)
        places += [((nth + 0.5) / len(kind), place) for nth, place in enumerate(kind)]
    return [place for _, place in sorted(places)]


def config_of(model: Any, order: TrainingOrder) -> dict[str, Any]:
    """peft's description of the adapter, with the name by which engines know the base and no path of ours."""
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": order.base_name, "inference_mode": True}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in sorted(config.items())}


if __name__ == "__main__":
    sys.exit(main())
