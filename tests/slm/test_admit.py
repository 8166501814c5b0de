"""A model may summarise when it tells no fewer facts than the digest, and nothing else; each summary is checked again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory.errors import LLMMemoryError, ModelError
from memory.forms import budget_tokens, fill
from memory.prompts import text_mark
from memory.settings import Slm
from memory.slm.admit import (
    SHARE,
    Admitted,
    Candidate,
    Told,
    Verdict,
    candidate_of,
    examine,
    file_of,
    keep,
    kept,
    shorter,
)
from memory.slm.client import Completion, ModelAt
from memory.slm.registry import SMOLLM2
from memory.slm.shipped import admission
from memory.slm.weights import Weights
from memory.summarize import local
from tests.slm.engines import running, url_of

CANDIDATE = Candidate("m", "r", "llamacpp none")
TEXT = "Ada moved the launch to 14 May. The budget is 9,000 euros. Nobody may call the bank before Friday. " * 3


def words(text: str) -> int:
    return len(text.split())


class Scripted(ModelAt):
    """Answers as a function of the text that it is to summarise says."""

    def __init__(self, answers: Callable[[str], str], reason: str = "stop") -> None:
        super().__init__("http://127.0.0.1:1/v1", "scripted")
        self._answers = answers
        self._reason = reason
        self.asked: list[Any] = []

    async def complete(self, messages: Any, max_tokens: int, temperature: float = 0.0, stop: Any = ()) -> Completion:
        self.asked.append(messages)
        first, *lines, last = messages[-1]["content"].split("\n")
        assert first == last
        assert first in messages[0]["content"]
        return Completion(self._answers("\n".join(lines)), 0, 0, self._reason)


def digest_of(text: str) -> str:
    return fill(text, budget_tokens(words(text), SHARE, None), words)


def as_sentences(text: str) -> str:
    return text.replace(" … ", " ")


async def test_a_model_that_tells_what_the_digest_tells_is_admitted() -> None:
    found = await examine(Scripted(lambda text: as_sentences(digest_of(text))), CANDIDATE, words)
    assert found.is_admitted, str(found)
    assert found.by_model == found.by_digest > 5
    assert str(found).startswith("admitted: ")


async def test_a_model_that_tells_fewer_facts_is_not() -> None:
    found = await examine(Scripted(lambda text: "They talked about it."), CANDIDATE, words)
    assert not found.is_admitted
    assert not found.invented
    assert found.by_model == 0


@pytest.mark.parametrize("lie", ["It costs 987,654 euros.", "Zebulon said so."])
async def test_a_model_that_invents_a_number_or_a_name_is_not(lie: str) -> None:
    texts = ["\n\n".join(f"{role}: {content}" for role, content in one.messages) for one in admission()]
    found = await examine(
        Scripted(lambda text: lie if text == texts[2] else as_sentences(digest_of(text))), CANDIDATE, words
    )
    assert found.invented
    assert not found.is_admitted
    assert not replace(found, told=tuple(replace(one, by_model=99) for one in found.told)).is_admitted


async def test_nobody_is_admitted_for_having_told_nothing() -> None:
    assert not (await examine(Scripted(lambda text: ""), CANDIDATE, words, ())).is_admitted


async def test_both_have_the_same_room_and_a_sentence_that_was_cut_is_left_out() -> None:
    said = await shorter(Scripted(lambda text: "One two three. Four five six. Seven eight", "length"), TEXT, 6, words)
    assert said == "One two three. Four five six."
    assert await shorter(Scripted(lambda text: "One two three. Four five six."), TEXT, 5, words) == "One two three."
    assert await shorter(Scripted(lambda text: "One two three four."), TEXT, 3, words) == ""


async def test_the_lines_around_the_text_are_no_part_of_its_summary() -> None:
    mark = text_mark(TEXT)
    assert await shorter(Scripted(lambda text: f"{mark}\nOne two three.\n{mark}"), TEXT, 9, words) == "One two three."


async def test_what_was_found_out_is_kept_for_this_model_in_this_form_asked_in_these_words(tmp_path: Path) -> None:
    found = await examine(Scripted(lambda text: "Zebulon."), CANDIDATE, words)
    keep(found, tmp_path)
    assert kept(CANDIDATE, tmp_path) == found
    for other in ({"model": "n"}, {"revision": "s"}, {"form": "transformers 4bit"}, {"prompt": "12345678"}):
        assert kept(replace(CANDIDATE, **other), tmp_path) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"candidate": {}, "told": []}', "\x00", '{"candidate": 1}'])
def test_a_file_that_cannot_be_read_admits_nobody(tmp_path: Path, content: str) -> None:
    place = file_of(CANDIDATE, tmp_path)
    place.parent.mkdir()
    place.write_text(content)
    assert kept(CANDIDATE, tmp_path) is None


def test_a_verdict_that_was_copied_to_another_models_name_does_not_count(tmp_path: Path) -> None:
    good, other = Verdict(CANDIDATE, (Told("a", 1, 1, 1, 9, ()),)), replace(CANDIDATE, model="n")
    keep(good, tmp_path)
    file_of(CANDIDATE, tmp_path).rename(file_of(other, tmp_path))
    assert kept(other, tmp_path) is None


def test_other_weights_and_another_form_are_another_candidate(tiny_weights: Weights, tmp_path: Path) -> None:
    slm = Slm(backend="llamacpp", model=str(tiny_weights.path))
    first = candidate_of(slm, tmp_path)
    assert (first.model, first.form) == (tiny_weights.name, "llamacpp none")
    assert candidate_of(replace(slm, backend="transformers", quantization="4bit"), tmp_path).form == "transformers 4bit"
    copy = tmp_path / tiny_weights.path.name
    copy.write_bytes(tiny_weights.path.read_bytes() + b"\0")
    assert candidate_of(replace(slm, model=str(copy)), tmp_path).revision != first.revision
    served = [
        candidate_of(Slm(backend="openai", url=url, model="m"), tmp_path) for url in ("http://a/v1", "http://b/v1")
    ]
    assert served[0].revision != served[1].revision


# In use.


class Known(Admitted):
    def __init__(self, verdict: Verdict | None) -> None:
        super().__init__(Slm(), Path())
        self._verdict = verdict

    async def verdict(self) -> Verdict | None:
        return self._verdict


GOOD = Verdict(CANDIDATE, (Told("a", 4, 2, 2, 60, ()),))
BAD = Verdict(CANDIDATE, (Told("a", 4, 1, 2, 60, ()),))


async def used(answer: str, verdict: Verdict | None = GOOD) -> str | None:
    return await local(Scripted(lambda text: answer), Known(verdict), lambda model: words)(TEXT, 20, "gpt-4o")


async def test_an_admitted_model_summarises() -> None:
    assert await used("Ada moved the launch to 14 May.") == "Ada moved the launch to 14 May."


@pytest.mark.parametrize("verdict", [None, BAD])
async def test_one_that_was_not_examined_or_failed_is_not_even_asked(verdict: Verdict | None) -> None:
    model = Scripted(lambda text: "Ada moved the launch to 14 May.")
    assert await local(model, Known(verdict), lambda model: words)(TEXT, 20, "gpt-4o") is None
    assert model.asked == []


@pytest.mark.parametrize("answer", [
    "Ada moved the launch to 15 May.",
    "Zebulon moved the launch.",
    "The budget is 9,500 euros.",
    "Ada may call the bank before Friday.",
    "",
])  # fmt: skip
async def test_a_summary_that_does_not_hold_gives_way_to_the_digest(answer: str) -> None:
    assert await used(answer) is None


async def test_a_model_that_does_not_answer_gives_way_to_the_digest(tmp_path: Path) -> None:
    class Away(Scripted):
        async def complete(self, *_: Any, **__: Any) -> Completion:
            raise ModelError("away")

    assert await local(Away(str), Known(GOOD), lambda model: words)(TEXT, 20, "gpt-4o") is None
    missing = Admitted(Slm(backend="llamacpp", model="phi-2"), tmp_path)
    with pytest.raises(LLMMemoryError):
        await missing.verdict()
    assert await local(Scripted(str), missing, lambda model: words)(TEXT, 20, "gpt-4o") is None


async def test_smollm2_of_135_million_parameters_is_not_admitted(
    smollm2: Weights, models_home: Path, tmp_path: Path
) -> None:
    """Two of the five conversations, which is enough to fail."""
    with running(smollm2, models_home) as engine:
        model = ModelAt(url_of(engine), engine.name, seconds=300)
        found = await examine(model, candidate_of(Slm(model=SMOLLM2.name), models_home), words, admission()[:2])
    assert not found.is_admitted
    assert json.dumps(found.invented)
    keep(found, tmp_path)
    assert kept(found.candidate, tmp_path) == found
