"""A question to the memory: passages are found, a small model reads them, and its answer is taken only if they hold it.

Where there is no model, where it does not answer in time, or where its answer says what no passage says, the best
sentences of the passages are the answer. Either way it comes with what it rests on.
"""

import asyncio
import math
import re
import time
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from memory import check
from memory.digest.fit import CountTokens
from memory.digest.prose import sentences
from memory.errors import ModelError
from memory.extract import extract, told
from memory.gather import Gather, Gathered
from memory.grounded import rests_on, ungrounded
from memory.meter import UNCOUNTED, Meter
from memory.nouns import MemoryAnswer, NoModel, Place
from memory.prompts import reading
from memory.readers import Bare, Reader, Readers
from memory.settings import Slm
from memory.slm.adapting import base_name
from memory.slm.client import Completion, ModelAt
from memory.slm.registry import find

log = structlog.get_logger()

ENCODING = "o200k_base"  # by which passages are counted
MOST_QUESTION_CHARS = 4_000
ANSWER_TOKENS = 64
READ_SECONDS = 30.0
LEAST_PARAMETERS = 1_000_000_000  # of a model that reads several passages at once
SENTENCES = 3  # of passages, that are an answer
UNKNOWN_WINDOW = 2_048  # tokens, where nobody tells
MARGIN = 1.5  # tokens of another vocabulary by ours: SmolLM2 has up to 1.44 in code; without ASCII see `tokens_at_most`
MESSAGE_TOKENS = 8  # of a chat template, about
LIST_MARK = re.compile(r"^(?:[-*\u2022]|1[.)])\s+")


class Reading(NamedTuple):
    """What became of a model's reading: an answer that holds, or why there is none."""

    answer: str = ""
    rests_on: tuple[int, ...] = ()  # passages by their place, the one that says most of it first
    reason: NoModel | None = None


def model_of(slm: Slm) -> ModelAt | None:
    """The model that reads; None where none runs."""
    if slm.backend == "none" or not slm.url:
        return None
    return ModelAt(slm.url, base_name(slm), slm.key)


def reads_together(model: str) -> bool:
    """Whether a model finds its way among several passages.

    One of 135 million parameters takes its answer from the wrong one; of models that nobody knows the best is assumed.
    """
    known = find(model)
    return known is None or known.parameters >= LEAST_PARAMETERS


class Ask:
    def __init__(
        self, gather: Gather, count: CountTokens, model: ModelAt | None, window: int | None = None,
        together: bool = True, meter: Meter = UNCOUNTED, seconds: float = READ_SECONDS,
        readers: Readers | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            window: the model's tokens; None: what its engine says.
            together: whether the model reads all passages at once; else the best one, and while its answer does not
                hold the next.
            seconds: for all that the model reads for one question.
            readers: who reads for which tenant; None: the model as it is.
        """
        self._gather = gather
        self._count = count
        self._model = model
        self._readers = readers or (Bare(model) if model is not None else None)
        self._window = window
        self._together = together
        self._meter = meter
        self._seconds = seconds

    async def ask(self, tenant: bytes, question: object, limit: object = 3, place: Place | None = None) -> MemoryAnswer:
        """What a session's memory says to a question, or, without a place, all of the tenant's.

        Args:
            limit: passages that are read, 1 to 20.

        Raises:
            InvalidRequest: question or limit is wrong.
            StoreError: the database did not answer.
        """
        asked = check.text(question, "question", MOST_QUESTION_CHARS).strip()
        most, began = check.integer(limit, "limit", 1, check.MOST_PASSAGES), time.perf_counter()
        found = await self._gather.passages(tenant, place, asked, most)
        read = await self._read(tenant, asked, [one.text for one in found.passages])
        if self._model is not None and not await self._gather.still_stand(tenant, found.passages):
            found = await self._gather.passages(tenant, place, asked, most)  # something was taken away meanwhile
            read = Reading(reason="not_supported" if found.passages else "nothing_found")
        answer = await self._told(tenant, found, read)
        self._meter.asked(answer.by if answer.sources else "nothing", time.perf_counter() - began)
        return answer

    async def _read(self, tenant: bytes, question: str, texts: Sequence[str]) -> Reading:
        if not texts:
            return Reading(reason="nothing_found")
        if self._readers is None or self._model is None:
            return Reading(reason="no_model")
        try:
            async with asyncio.timeout(self._seconds):
                return await self._by_reader(self._readers, self._model, tenant, question, texts)
        except (ModelError, TimeoutError) as error:
            log.warning("answering without the model", reason=str(error) or f"no answer in {self._seconds:g} s")
            return Reading(reason="model_failed")

    async def _by_reader(
        self, readers: Readers, bare: ModelAt, tenant: bytes, question: str, texts: Sequence[str]
    ) -> Reading:
        """What the tenant's reader says; where its adapter does not answer, what the bare model says.

        Raises:
            ModelError: neither answered.
        """
        reader = await readers.reader(tenant)
        try:
            read = await self._reading(reader, question, texts)
        except ModelError as error:
            if reader.adapter is None:
                raise
            log.warning("reading without the adapter", reason=str(error))
            return await self._reading(Reader(bare), question, texts)
        await readers.heard(tenant, reader, bool(read.answer))
        return read

    async def _reading(self, reader: Reader, question: str, texts: Sequence[str]) -> Reading:
        """The first answer that holds: of all passages together, or of one after the other.

        Raises:
            ModelError: the model did not answer.
        """
        for begin, end in [(0, len(texts))] if self._together else [(n, n + 1) for n in range(len(texts))]:
            messages, shown = await self._prompt(reader, question, texts[begin:end])
            said = await reader.model.complete(messages, ANSWER_TOKENS, stop=("\n",))
            read = judged(answer_in(said), question, texts[begin : begin + shown])
            if read.answer:
                return read._replace(rests_on=tuple(begin + place for place in read.rests_on))
        return Reading(reason="not_supported")

    async def _prompt(self, reader: Reader, question: str, texts: Sequence[str]) -> tuple[list[dict[str, str]], int]:
        """What the model is asked, and how many of the passages it is shown: what fits its window.

        One with an adapter has learnt how to read, and gets no examples.

        Raises:
            ModelError: not one of them does.
        """
        model = reader.model
        window = self._window or await model.window() or UNKNOWN_WINDOW
        for shown in range(len(texts), 0, -1):
            for examples in (True, False) if reader.adapter is None else (False,):
                messages = reading(question, texts[:shown], examples)
                tokens = sum(tokens_at_most(m["content"], self._count) + MESSAGE_TOKENS for m in messages)
                if tokens + ANSWER_TOKENS <= window:
                    return messages, shown
        raise ModelError(f"no passage fits the {window:,} tokens of the model {model.model}")

    async def _told(self, tenant: bytes, found: Gathered, read: Reading) -> MemoryAnswer:
        if read.answer:
            sources = await self._gather.sources(tenant, [found.passages[place] for place in read.rests_on])
            return MemoryAnswer(read.answer, "model", None, sources)
        texts, scores = [one.text for one in found.passages], [one.score for one in found.passages]
        chosen = extract(texts, scores, found.weights, SENTENCES)
        places = dict.fromkeys(one.passage for one in chosen)
        sources = await self._gather.sources(tenant, [found.passages[place] for place in places])
        return MemoryAnswer(told(chosen) or None, "passages", read.reason, sources)


def answer_in(said: Completion) -> str:
    """A model's words without a list's mark; of an answer that was cut, its whole sentences."""
    text = LIST_MARK.sub("", said.text)
    if said.finish_reason != "length":
        return text
    whole = sentences(text)
    return " ".join(whole if text.endswith((".", "!", "?")) else whole[:-1])


def judged(answer: str, question: str, texts: Sequence[str]) -> Reading:
    """An answer, if passages hold all that it says."""
    if not answer or ungrounded(answer, texts):
        return Reading(reason="not_supported")
    places = rests_on(answer, question, texts)
    return Reading(answer, places) if places else Reading(reason="not_supported")


def tokens_at_most(text: str, count: CountTokens) -> int:
    """Tokens that a text has with any vocabulary, about: outside of ASCII a small one may need one for each byte."""
    return math.ceil(MARGIN * count(text)) + sum(len(c.encode()) for c in text if not c.isascii())
