"""Training, from a tenant's messages to a verdict: one at a time, of all processes; what is cut goes on where it stood.

    lease -> rows -> child -> folder -> measured -> judged -> on trial, or refused

It waits for child processes and computes next to nothing itself, so it runs beside other work.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog

from memory.errors import Conflict, InvalidRequest, LLMMemoryError, StoreError
from memory.identify import new_id
from memory.nouns import Clock, Training
from memory.settings import Slm
from memory.slm.adapters import Adapter, Foundation, open_adapter, publish
from memory.slm.adapting import base_name
from memory.slm.bases import Base, Bases
from memory.slm.children import Child, Died, measure
from memory.slm.gate import Rules, Scores, Verdict, judge
from memory.slm.header import BadWeights
from memory.slm.lessons import MOST_QUESTIONS, ROWS, Lessons, are_there, lessons, measuring
from memory.slm.orders import MeasuringOrder, TrainingOrder
from memory.slm.recipe import Recipe, recipe_of
from memory.slm.samples import Conversation, Utterance, canaries_of
from memory.store import adapters, learning
from memory.store.learning import LearntRow
from memory.store.pool import Pool
from memory.written import said

log = structlog.get_logger()

LEASE, LEASE_SECONDS, BEAT_SECONDS = "training", 90.0, 15.0
WAIT_SECONDS = 30.0
MOST_TRIES = 3  # of trainers that died
MOST_CANARIES = 20
NOTED = frozenset({"loaded", "saved", "watched", "done"})  # what a trainer tells that is kept
SPOILT = "something that it learns from was taken away meanwhile; train again"

Tell = Callable[[Mapping[str, Any]], None]


class Teaching(Protocol):
    """What does the work: child processes, or a script."""

    def train(self, order: TrainingOrder) -> Any:
        """An async context manager that gives the trainer's events."""

    def measure(self, order: MeasuringOrder) -> Awaitable[dict[str, Scores]]: ...


@dataclass(frozen=True, slots=True)
class Children:
    environment: Mapping[str, str] | None = None  # None: ours

    def train(self, order: TrainingOrder) -> Child:
        return Child(order, self.environment)

    async def measure(self, order: MeasuringOrder) -> dict[str, Scores]:
        return await measure(order, self.environment)


CHILDREN, RULES = Children(), Rules()


def silent(event: Mapping[str, Any]) -> None:
    """Nobody listens."""


class Ended(Exception):
    """A training ends before its end."""

    def __init__(self, state: str, error: str | None = None) -> None:
        super().__init__(error)
        self.state, self.error = state, error


@dataclass(frozen=True, slots=True)
class Course:
    """One training on its way."""

    tenant: bytes
    id: UUID
    force: bool
    recipe: Recipe
    base: Base
    work: Path

    @property
    def foundation(self) -> Foundation:
        return self.base.foundation


class Trainer:
    def __init__(
        self, pool: Pool, home: Path, slm: Slm, clock: Clock, bases: Bases, teaching: Teaching = CHILDREN,
        rules: Rules = RULES, most_questions: int = MOST_QUESTIONS, beat_seconds: float = BEAT_SECONDS,
    ) -> None:  # fmt: skip
        """
        Args:
            home: the data directory.
            most_questions: about held-out conversations, that are measured.
            beat_seconds: how often the lease is renewed, and whether to go on is looked at.
        """
        self._pool, self._home, self._slm, self._clock = pool, home, slm, clock
        self._bases, self._teaching, self._rules = bases, teaching, rules
        self._most_questions = most_questions
        self._beat_seconds = beat_seconds

    async def run(
        self, tell: Tell = silent, only: tuple[bytes, UUID] | None = None, stop: asyncio.Event | None = None
    ) -> Training | None:
        """Do the training that waits longest, or that one; None where none waits, or another process trains.

        Args:
            stop: once set, the trainer saves where it stands and ends; wanted again, it goes on from there.

        Raises:
            StoreError: the database is away; what was begun goes on later.
        """
        holder = new_id()
        if not await self._lease(holder):
            return None
        try:
            wanted = only or await self._next()
            if wanted is None or not await self._begin(*wanted):
                return None
            await self._one(holder, *wanted, tell, stop or asyncio.Event())
            async with self._pool.tenant(wanted[0], WAIT_SECONDS) as connection:
                return await learning.load_training(connection, *wanted)
        finally:
            with suppress(StoreError):
                await asyncio.shield(self._leave(holder))

    async def _next(self) -> tuple[bytes, UUID] | None:
        async with self._pool.connection(WAIT_SECONDS) as connection:
            return next(iter(await learning.list_waiting(connection)), None)

    async def _lease(self, holder: UUID) -> bool:
        async with self._pool.connection(WAIT_SECONDS) as connection:
            return await learning.take_lease(connection, LEASE, holder, self._clock(), LEASE_SECONDS)

    async def _leave(self, holder: UUID) -> None:
        async with self._pool.connection(WAIT_SECONDS) as connection:
            await learning.leave_lease(connection, LEASE, holder)

    async def _begin(self, tenant: bytes, id: UUID) -> bool:
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            return await learning.begin_training(connection, tenant, id, self._clock())

    async def _one(self, holder: UUID, tenant: bytes, id: UUID, tell: Tell, stop: asyncio.Event) -> None:
        """Run a course, and write down how it ended, whatever that was."""
        state, error = "queued", None  # of one that is cut
        try:
            state, error = await self._watched(holder, tenant, id, tell, stop)
        except Died as fault:
            state, error = await self._again(tenant, id), str(fault)
        except InvalidRequest as fault:
            state, error = "refused", str(fault)
        except LLMMemoryError as fault:
            state, error = "failed", str(fault)
        except OSError as fault:
            state, error = "failed", f"{type(fault).__name__}: {fault.strerror}"
        finally:
            if state != "lost":
                await asyncio.shield(self._end(tenant, id, state, error))

    async def _again(self, tenant: bytes, id: UUID) -> str:
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            training = await learning.load_training(connection, tenant, id)
        return "queued" if training is not None and training.tries < MOST_TRIES else "failed"

    async def _end(self, tenant: bytes, id: UUID, state: str, error: str | None) -> None:
        now = self._clock()
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            await learning.end_training(connection, tenant, id, state, error, now)
            if state in ("refused", "failed"):
                before = ["training", "trained", "evaluated"]
                await adapters.set_state(connection, tenant, id, "refused", before, now, error=error)
        if state not in ("queued", "stopped"):
            await asyncio.to_thread(shutil.rmtree, self._work(id), ignore_errors=True)
        if state == "queued":
            log.warning("a training was cut, and goes on", training=str(id), reason=error)
        else:
            log.info("a training has ended", training=str(id), state=state, reason=error)

    def _work(self, id: UUID) -> Path:
        return self._home / "trainings" / str(id)

    async def _watched(
        self, holder: UUID, tenant: bytes, id: UUID, tell: Tell, stop: asyncio.Event
    ) -> tuple[str, str | None]:
        """Run a course until it ends, or until it must not go on."""
        course = asyncio.create_task(self._course(tenant, id, tell))
        watch = asyncio.create_task(self._watch(holder, tenant, id, stop))
        try:
            await asyncio.wait((course, watch), return_when=asyncio.FIRST_COMPLETED)
            if course.done():
                return await course
            ended = await watch
        finally:
            for task in (course, watch):
                task.cancel()
            await asyncio.gather(course, watch, return_exceptions=True)
        return ended.state, ended.error

    async def _watch(self, holder: UUID, tenant: bytes, id: UUID, stop: asyncio.Event) -> Ended:
        """Renew the lease; ends when the training has to."""
        renewed = self._clock()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._beat_seconds):
                    await stop.wait()
                return Ended("stopped", "it was stopped; `infold slm train` goes on where it stood")
            try:
                if not await self._lease(holder):
                    return Ended("lost")
                renewed = self._clock()
                if not await self._may_go_on(tenant, id):
                    return Ended("refused", SPOILT)
            except StoreError:
                if (self._clock() - renewed).total_seconds() > LEASE_SECONDS:
                    return Ended("lost")  # another has it by now, or will have

    async def _may_go_on(self, tenant: bytes, id: UUID) -> bool:
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            learner = await learning.load_learner(connection, tenant)
            row = await adapters.load_adapter(connection, tenant, id)
        return learner is not None and learner.enabled and (row is None or row.state != "stale")

    # The course

    async def _course(self, tenant: bytes, id: UUID, tell: Tell) -> tuple[str, str | None]:
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            training = await learning.load_training(connection, tenant, id)
        if training is None:
            raise Conflict(SPOILT)
        base = await self._bases.base()
        course = Course(tenant, id, training.force, recipe_of(training.recipe), base, self._work(id))
        await self._prepare(course)
        adapter = await self._published(course, tell)
        tell({"event": "measuring"})
        verdict = await self._judged(course, adapter)
        return await self._settle(course, adapter, verdict)

    async def _prepare(self, course: Course) -> None:
        """The rows, once; from then on a quarantine finds what they are made of."""
        async with self._pool.tenant(course.tenant, WAIT_SECONDS) as connection:
            row = await adapters.load_adapter(connection, course.tenant, course.id)
        if row is not None and row.base != course.foundation.hash:
            raise Conflict("the base model was changed since this training was begun; train again")
        if row is not None and are_there(course.work):
            return
        async with self._pool.tenant(course.tenant, WAIT_SECONDS) as connection:
            rows = await learning.load_learnt(connection, course.tenant)
            secret = await learning.load_secret(connection, course.tenant, MOST_CANARIES)
        made = await asyncio.to_thread(self._lessons, course, rows, secret)
        digests = {row.node.hex(): (row.node, row.digest) for row in rows}
        await self._note_begun(course, [digests[id] for id in made.sources])
        await asyncio.to_thread(made.write, course.work)

    def _lessons(self, course: Course, rows: Sequence[LearntRow], secret: Sequence[LearntRow]) -> Lessons:
        canaries = canaries_of(conversations_of(secret))[:MOST_CANARIES]
        least = self._rules.least_questions
        most = self._most_questions
        return lessons(conversations_of(rows), canaries, course.recipe, course.base.folder, least, most)

    async def _note_begun(self, course: Course, sources: Sequence[tuple[bytes, bytes]]) -> None:
        async with self._pool.tenant(course.tenant, WAIT_SECONDS) as connection:
            await learning.share_the_door(connection, course.tenant)
            if not await learning.are_learnt(connection, course.tenant, [node for node, _ in sources]):
                raise InvalidRequest(SPOILT)
            await adapters.begin_adapter(
                connection, course.tenant, course.id, course.foundation.hash, course.recipe.quantization, sources,
                self._clock(),
            )  # fmt: skip
            await learning.note_training(connection, course.tenant, course.id, {}, len(sources))

    async def _published(self, course: Course, tell: Tell) -> Adapter:
        """Train, and give the result its place."""
        async with self._pool.tenant(course.tenant, WAIT_SECONDS) as connection:
            rows = await adapters.list_adapters(connection, course.tenant)
        row = next((row for row in rows if row.id == course.id), None)
        if row is not None and row.folder is not None:  # it was killed after that
            return await asyncio.to_thread(open_adapter, self._home / row.folder, course.foundation)
        await self._train(course, tell)
        meta = {"training": str(course.id), "recipe": course.recipe.as_json(), "seed": course.recipe.seed}
        adapter = await asyncio.to_thread(
            publish, self._home / "adapters", course.tenant.hex(), course.foundation,
            course.work / "run" / "adapter", meta, max((row.number or 0 for row in rows), default=0),
        )  # fmt: skip
        if not await self._note_published(course, adapter):
            await asyncio.to_thread(shutil.rmtree, adapter.folder, ignore_errors=True)
            raise InvalidRequest(SPOILT)
        return adapter

    async def _note_published(self, course: Course, adapter: Adapter) -> bool:
        folder = str(adapter.folder.relative_to(self._home))
        async with self._pool.tenant(course.tenant, WAIT_SECONDS) as connection:
            return await adapters.set_state(
                connection, course.tenant, course.id, "trained", ["training"], self._clock(),
                number=int(adapter.folder.name), folder=folder,
            )  # fmt: skip

    async def _train(self, course: Course, tell: Tell) -> None:
        limits, base = self._slm.learning, course.base
        order = TrainingOrder(
            base.folder, course.work / ROWS, course.work / "run", course.recipe, base_name(self._slm),
            self._slm.threads, limits.most_seconds, limits.most_memory_mb, course.force,
        )  # fmt: skip
        async with self._teaching.train(order) as child:
            async for event in child:
                tell(event)
                if event["event"] in NOTED:
                    await self._note(course, event)

    async def _note(self, course: Course, event: Mapping[str, Any]) -> None:
        """A number that is not written is no reason to end."""
        left_out = ("event", "adapter")
        numbers = {name: value for name, value in event.items() if name not in left_out}
        if event["event"] == "watched":
            numbers = {"watched_loss": event["loss"]}
        with suppress(StoreError):
            async with self._pool.tenant(course.tenant, WAIT_SECONDS) as connection:
                await learning.note_training(connection, course.tenant, course.id, numbers)

    async def _judged(self, course: Course, adapter: Adapter) -> Verdict:
        """The base, the adapter in use and the new one answer the same questions."""
        measured = {"candidate": adapter.folder}
        current = await self._current(course)
        if current is not None:
            measured = {"current": current, **measured}
        limits = self._slm.learning
        order = measuring(course.work, course.recipe, measured, self._slm.threads, limits.most_memory_mb)
        control = max(self._rules.least_control, 1)
        scores = await self._teaching.measure(replace(order, base=course.base.folder, most_control=control))
        others = {name: found for name, found in scores.items() if name != "candidate"}
        return judge(scores["candidate"], others, self._rules)

    async def _current(self, course: Course) -> Path | None:
        """The folder of the adapter in use, where it can be compared with."""
        async with self._pool.tenant(course.tenant, WAIT_SECONDS) as connection:
            rows = await adapters.list_adapters(connection, course.tenant)
        active = next((row for row in rows if row.state == "active" and row.folder), None)
        if active is None or active.folder is None or active.base != course.foundation.hash:
            return None
        try:
            return (await asyncio.to_thread(open_adapter, self._home / active.folder, course.foundation)).folder
        except BadWeights:  # `tending` takes it away
            return None

    async def _settle(self, course: Course, adapter: Adapter, verdict: Verdict) -> tuple[str, str | None]:
        """Write the gate's table down; what passed is on trial from now on, or in use where no trial is wanted."""
        tenant, id, now = course.tenant, course.id, self._clock()
        table = msgspec.json.encode(verdict.as_json()).decode()
        async with self._pool.tenant(tenant, WAIT_SECONDS) as connection:
            rows = await adapters.lock(connection, tenant)
            state = "evaluated" if verdict.passed else "refused"
            judged = await adapters.set_state(connection, tenant, id, state, ["trained"], now, verdict=table)
            if not judged and not any(row.id == id and row.state in ("canary", "active") for row in rows):
                raise InvalidRequest(SPOILT)
            if not verdict.passed:
                return "refused", "; ".join(verdict.reasons)
            if judged and self._slm.learning.canary_answers:
                await adapters.put_on_trial(connection, tenant, id, now)
            elif judged:
                await adapters.promote(connection, tenant, id, None, now)
        return "done", None


def conversations_of(rows: Sequence[LearntRow]) -> tuple[Conversation, ...]:
    """Messages as conversations, each in its order; the one that ended first comes first."""
    lines: dict[str, list[LearntRow]] = {}
    for row in reversed(rows):  # the newest come first
        lines.setdefault(row.session, []).append(row)
    made = [
        Conversation(
            session,
            max(row.created_at for row in line).timestamp(),
            tuple(Utterance(row.node.hex(), row.role, said(row.raw)) for row in line),
        )
        for session, line in lines.items()
    ]
    return tuple(sorted(made, key=lambda one: (one.ended, one.id)))
