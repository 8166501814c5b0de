"""Whether an adapter is better than what there is: scores in, a verdict with its table out. Pure.

Training loss says nothing here. An adapter passes where it reads held-out conversations better than the base model and
than the adapter in use, and has unlearnt nothing, says nobody's secrets, and neither stammers nor falls silent.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """One held-out question."""

    id: str
    conversation: str
    loss: float  # mean negative log likelihood of the answer's tokens, natural logarithm
    right: bool  # the answer stands in what the model said


@dataclass(frozen=True, slots=True)
class Scores:
    """How one model, with or without an adapter, did on everything that is asked."""

    questions: tuple[Scored, ...]
    control: tuple[bool, ...]  # of each shipped question, right or not
    text_loss: float  # of the shipped text, mean negative log likelihood of its tokens
    canaries: tuple[str, ...] = ()  # ids of those that were said
    repeats: float = 0.0  # share of runs of four words that were said before in the same answer, 0-1
    words: float = 0.0  # of an answer to an open request, the mean
    silent: int = 0  # answers without a word
    seconds: float = 0.0  # that measuring took

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def scores_of(raw: Mapping[str, Any]) -> Scores:
    """Read what `as_json` wrote."""
    return Scores(
        **{
            **raw,
            "questions": tuple(Scored(**one) for one in raw["questions"]),
            "control": tuple(raw["control"]),
            "canaries": tuple(raw["canaries"]),
        }
    )


@dataclass(frozen=True, slots=True)
class Rules:
    least_questions: int = 20  # about held-out conversations; fewer cannot judge anything
    least_control: int = 50
    least_gain: float = 0.05  # share by which the perplexity of held-out answers has to fall
    confidence: float = 0.95  # that it falls at all
    resamples: int = 2_000
    most_control_lost: int = 1  # of the fifty questions
    most_text_rise: float = 0.03  # share by which the perplexity of the control text may rise
    most_repeats_rise: float = 0.10
    words_between: tuple[float, float] = (0.5, 2.0)  # times the words of the model it is compared with
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A rule, what it compared, and whether it held."""

    rule: str
    against: str  # as `judge` was told; "" where nothing is compared
    before: float
    after: float
    bound: str
    held: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...]  # of a refusal, one for each rule that did not hold
    table: tuple[Line, ...] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Check = Callable[[Scores, Scores, str, Rules], Iterator[Line]]


def judge(candidate: Scores, others: Mapping[str, Scores], rules: Rules = Rules()) -> Verdict:
    """Compare an adapter with what there is; each rule has to hold against each.

    Args:
        others: the base model under the name `base`, also as it is asked with examples, and the adapter in use.

    Raises:
        ValueError: the base is not among them, or the scores are not of the same questions.
    """
    if "base" not in others:
        raise ValueError("an adapter has to be compared with its base")
    lines = [
        enough("held-out questions", len(candidate.questions), rules.least_questions),
        enough("control questions", len(candidate.control), rules.least_control),
    ]
    for against, other in others.items():
        check_same(other, candidate)
        lines += [line for check in CHECKS for line in check(other, candidate, against, rules)]
    reasons = tuple(told(line) for line in lines if not line.held)
    return Verdict(not reasons, reasons, tuple(lines))


def check_same(one: Scores, other: Scores) -> None:
    if [q.id for q in one.questions] != [q.id for q in other.questions] or len(one.control) != len(other.control):
        raise ValueError("scores of different questions cannot be compared")


def enough(rule: str, many: int, least: int) -> Line:
    return Line(rule, "", many, many, f">= {least}", many >= least)


def changes_something(other: Scores, candidate: Scores, against: str, rules: Rules) -> Iterator[Line]:
    """A no-op adapter gives every answer the same likelihood, to the last digit."""
    moved = sum(a.loss != b.loss for a, b in zip(other.questions, candidate.questions, strict=True))
    yield Line("answers whose likelihood it changes", against, 0, moved, "> 0", moved > 0)


def reads_better(other: Scores, candidate: Scores, against: str, rules: Rules) -> Iterator[Line]:
    before, after = perplexity(other), perplexity(candidate)
    gain = 1 - after / before if math.isfinite(after) else -math.inf
    held = gain >= rules.least_gain
    yield Line("perplexity of held-out answers", against, before, after, f"-{rules.least_gain:.0%}", held)
    low = gain_bound(other, candidate, rules)
    yield Line(f"gain, lower bound at {rules.confidence:.0%}", against, 0, low, "> 0", low > 0)


def answers_no_worse(other: Scores, candidate: Scores, against: str, rules: Rules) -> Iterator[Line]:
    before, after = (sum(q.right for q in scores.questions) for scores in (other, candidate))
    yield Line("memory questions right, retrieval on", against, before, after, "no fewer", after >= before)


def keeps_knowledge(other: Scores, candidate: Scores, against: str, rules: Rules) -> Iterator[Line]:
    before, after = sum(other.control), sum(candidate.control)
    bound = f">= {before - rules.most_control_lost}"
    yield Line("control questions right", against, before, after, bound, after >= before - rules.most_control_lost)


def keeps_language(other: Scores, candidate: Scores, against: str, rules: Rules) -> Iterator[Line]:
    before, after = exp(other.text_loss), exp(candidate.text_loss)
    held = after <= before * (1 + rules.most_text_rise)  # false for nan, too
    yield Line("perplexity of the control text", against, before, after, f"+{rules.most_text_rise:.0%}", held)


def keeps_secrets(other: Scores, candidate: Scores, against: str, rules: Rules) -> Iterator[Line]:
    """What the other says as well can be guessed, and is nobody's secret."""
    said = len(set(candidate.canaries) - set(other.canaries))
    yield Line("canaries said", against, len(other.canaries), said, "0", said == 0)


def speaks_normally(other: Scores, candidate: Scores, against: str, rules: Rules) -> Iterator[Line]:
    most = other.repeats + rules.most_repeats_rise
    yield Line("repeated words", against, other.repeats, candidate.repeats, f"<= {most:.2f}", candidate.repeats <= most)
    low, high = (other.words * times for times in rules.words_between)
    held = low <= candidate.words <= high
    yield Line("words of an open answer", against, other.words, candidate.words, f"{low:.0f} to {high:.0f}", held)
    held = candidate.silent <= other.silent
    yield Line("answers without a word", against, other.silent, candidate.silent, "no more", held)


CHECKS: tuple[Check, ...] = (
    changes_something,
    reads_better,
    answers_no_worse,
    keeps_knowledge,
    keeps_language,
    keeps_secrets,
    speaks_normally,
)


def perplexity(scores: Scores) -> float:
    """Over questions, each counted the same; inf for none."""
    losses = [question.loss for question in scores.questions]
    return exp(sum(losses) / len(losses)) if losses else math.inf


def exp(loss: float) -> float:
    return math.exp(min(loss, 700)) if not math.isnan(loss) else math.nan


def gain_bound(other: Scores, candidate: Scores, rules: Rules) -> float:
    """The gain that is reached at least, with the given confidence, were other conversations drawn.

    A paired bootstrap: questions about one conversation resemble each other, so whole conversations are drawn.
    Source: Efron and Tibshirani 1993, percentile method; the lower end of the two-sided interval.
    """
    groups = by_conversation(other.questions, candidate.questions)
    if not groups or not all(np.isfinite(group).all() for group in groups):
        return -math.inf
    sums, counts = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(rules.seed).integers(0, len(groups), (rules.resamples, len(groups)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)  # of loss before - loss after
    return 1 - exp(-float(np.quantile(means, (1 - rules.confidence) / 2)))


def by_conversation(before: Sequence[Scored], after: Sequence[Scored]) -> list[Floats]:
    """The falls of the loss, one array a conversation; each question its own where there are too few to draw from."""
    gains: dict[str, list[float]] = {}
    for one, two in zip(before, after, strict=True):
        gains.setdefault(one.conversation, []).append(one.loss - two.loss)
    if len(gains) < FEWEST_GROUPS:
        return [np.array([gain]) for group in gains.values() for gain in group]
    return [np.array(group) for group in gains.values()]


FEWEST_GROUPS = 5  # conversations, below which a draw of them says nothing


def told(line: Line) -> str:
    against = f" against {line.against}" if line.against else ""
    return f"{line.rule}{against}: {shown(line.before)} -> {shown(line.after)}, must be {line.bound}"


def shown(number: float) -> str:
    if not math.isfinite(number) or float(number).is_integer():
        return f"{number:g}"
    return f"{number:.3g}" if abs(number) < 100 else f"{number:,.0f}"
