"""The story of a run: start a provider and the real Infold, talk for ten weeks, ask about the first minutes."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import openai
from openai.types import CompletionUsage
from rich.console import Console

from memory.messages import Message
from memory.models import ModelTable
from memory.prices import input_cost
from memory.tokens import REPLY_TOKENS, Counter
from memory.types import Model, Prices
from proxy.demo.house import DemoError, infold
from proxy.demo.provider import LINE_HEADER, Provider, cached_tokens, serving
from proxy.demo.show import WIDEST, Answered, Lines, Picture, Said, Stage, View, Window, closing
from proxy.demo.story import Question, Story, Turn, tell

Json = dict[str, Any]

WINDOW = 8_192  # tokens
ANSWER_TOKENS = 512  # max_tokens of each request
MODEL = "demo-8k"
PRICED_AS = "gpt-4o"
KEY = "sk-demo"
TIMEOUT_SECONDS = 60.0
HINT = re.compile(r"\s*\[#([a-z2-7]{8})\]")


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, so that people can follow; all 0 when nobody watches."""

    word: float = 0.0  # after each piece of an answer, in the first minutes and at the end
    opening: float = 0.0  # after a turn of the first minutes
    turn: float = 0.0  # that any other turn takes at least
    rollover: float = 0.0  # after one
    question: float = 0.0  # before and after an answer


WATCHED = Pace(word=0.03, opening=0.5, turn=0.14, rollover=0.3, question=0.9)


def demo(seed: int, fast: bool, console: Console) -> bool:
    """Play it; were all questions answered?

    Raises:
        DemoError: something is missing or does not start.
        KeyboardInterrupt: stopped; all that was started has ended by then.
    """
    if not console.is_terminal:
        console.width = WIDEST
    pace = WATCHED if console.is_terminal and not fast else Pace()
    story = tell(seed)
    provider = Provider([turn.reply for turn in story.turns], WINDOW, model_of_demo().encoding)
    with stoppable(), ExitStack() as stack:
        with waiting(console, "Starting a scripted provider and Infold: PostgreSQL, a web worker, a job worker."):
            upstream = stack.enter_context(serving(provider))
            url = stack.enter_context(infold(upstream, model_of_demo(), prices_of(PRICED_AS)))
        clients = stack.enter_context(sdk(url)), stack.enter_context(sdk(upstream))
        stage: Stage = stack.enter_context(Picture(console)) if console.is_terminal else Lines(console)
        run = Run(story, *clients, stage, pace)
        run.play()
        answers = [run.ask(question) for question in story.questions]
    console.print(closing(run.view, answers, min(console.width, WIDEST)))
    return all(answer.right for answer in answers)


def model_of_demo() -> Model:
    """A small window, counted as a known model counts."""
    return Model(MODEL, WINDOW, encoding=ModelTable().find(PRICED_AS).encoding)


def prices_of(name: str) -> Prices:
    prices = ModelTable().find(name).prices
    if prices is None:
        raise DemoError(f"the price map does not know {name}; is the package litellm installed in whole?")
    return prices


@contextmanager
def waiting(console: Console, words: str) -> Iterator[None]:
    if not console.is_terminal:
        console.print(words, highlight=False)
        yield
        return
    with console.status(words):
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM is a Ctrl-C: what was started is stopped in order."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(slots=True)
class Heard:
    """An answer as it came."""

    turn: str  # x-infold-turn
    asked: int
    forwarded: int
    block: int
    saved_usd: float
    content: str = ""
    calls: list[Json] = field(default_factory=list)
    usage: CompletionUsage | None = None

    @property
    def message(self) -> Json:
        if self.calls:
            return {"role": "assistant", "content": self.content or None, "tool_calls": self.calls}
        return {"role": "assistant", "content": self.content}


class Run:
    """One client with its conversation. What is seen is `view`."""

    def __init__(self, story: Story, infold: openai.OpenAI, alone: openai.OpenAI, stage: Stage, pace: Pace) -> None:
        self._story = story
        self._infold = infold
        self._provider = alone
        self._stage = stage
        self._pace = pace
        self._model = model_of_demo()
        self._prices = prices_of(PRICED_AS)
        self._counter = Counter()
        self._history: list[Json] = [story.system]
        self._days: list[str] = []  # of each message behind the system's
        self._front = self._front_tokens()
        requests = len(story.turns) + len(story.questions)
        self.view = View(Window(WINDOW, front=self._front), requests, priced_as=PRICED_AS)

    # The ten weeks.

    def play(self) -> None:
        for number, turn in enumerate(self._story.turns):
            self._hear(turn, number)

    def _hear(self, turn: Turn, number: int) -> None:
        """One request of the story."""
        began, is_opening = time.monotonic(), number < self._story.opening_turns
        self._add(turn.day, turn.adds)
        self._news(*(shown(message) for message in turn.adds), day=turn.day)
        heard = self._request(lambda: self._wait(self._pace.word if is_opening else 0), {LINE_HEADER: str(number)})
        was = self.view.conversation
        self._account(heard)
        if was <= WINDOW < heard.asked:
            self._news(Said("provider", self._refusal()))
            self._wait(self._pace.rollover)
        self._add(turn.day, [heard.message])
        self._news(shown(heard.message))
        self._wait(self._pace.opening if is_opening else self._pace.turn - (time.monotonic() - began))

    def _refusal(self) -> str:
        """What the provider says to the same request without Infold."""
        try:
            self._provider.chat.completions.create(**self._body())
        except openai.BadRequestError as error:
            said = error.body.get("message", "") if isinstance(error.body, dict) else ""
            return f"Without Infold, from here on: {error.status_code} {error.code}. {said}"
        raise DemoError("the provider took a prompt that is longer than its window")

    # The questions.

    def ask(self, question: Question) -> Answered:
        """Ask about the first minutes; once more of the provider alone, with what fits of the newest messages."""
        self._add(self.view.day, [{"role": "user", "content": question.ask}])
        self._news(Said("question", question.ask))
        self._wait(self._pace.question)
        heard = self._request(lambda: self._wait(self._pace.word))
        self._account(heard)
        alone = self._alone()
        self._add(self.view.day, [heard.message])
        source, quoted_back = self._source(heard)
        answer = HINT.sub("", heard.content)
        self._news(Said("answer", f"{answer}  ← {source}"))
        self._wait(self._pace.question)
        right = is_right(answer, question)
        return Answered(question.ask, answer, right, source, alone, is_right(alone, question), quoted_back)

    def _source(self, heard: Heard) -> tuple[str, bool]:
        """Where the evidence stood, by the id that the answer names and Infold's explanation of the turn."""
        named = HINT.search(heard.content)
        if named is None:
            return "none", False
        position = self._position_of(heard.content)
        block = self._explanation(heard.turn).get("block") or {}
        for told in block.get("quotes", ()):
            if told["position"] == position:  # a run of quotes stands under the id of its first
                return f"[#{told['id']}] message {position + 1}, {self._days[position]}", True
        return f"[#{named[1]}] in the digest", False

    def _position_of(self, answer: str) -> int:
        """The message behind the system's that an answer quotes."""
        quoted = answer[answer.find("“") + 1 : answer.rfind("”")]
        return next(n for n, message in enumerate(self._history[1:]) if quoted in (message.get("content") or ""))

    def _alone(self) -> str:
        """The provider's answer to the newest messages that fit its window."""
        room, start = WINDOW - ANSWER_TOKENS - self._front - REPLY_TOKENS, len(self._history)
        while start > 1 and (room := room - self._tokens(self._history[start - 1])) >= 0:
            start -= 1
        while self._history[start]["role"] != "user":
            start += 1
        body = self._body([self._history[0], *self._history[start:]])
        return self._provider.chat.completions.create(**body).choices[0].message.content or ""

    # One request.

    def _body(self, messages: Sequence[Json] | None = None) -> Json:
        """Arguments for the SDK.

        Messages go past its conversion by type annotations (openai 2.54), which takes 0.4 ms for each of them.
        """
        return {
            "model": self._model.name,
            "messages": [],
            "tools": self._story.tools,
            "max_tokens": ANSWER_TOKENS,
            "extra_body": {"messages": messages or self._history},
        }

    def _request(self, piece: Callable[[], None], headers: dict[str, str] | None = None) -> Heard:
        """Send the whole history, as clients do, and hear the streamed answer; `piece` runs after each part of it."""
        raw = self._infold.chat.completions.with_raw_response.create(
            **self._body(), stream=True, stream_options={"include_usage": True}, extra_headers=headers
        )
        heard = noted(raw.headers)
        with raw.parse() as stream:
            for chunk in stream:
                heard.usage = chunk.usage or heard.usage
                for choice in chunk.choices:
                    heard.content += choice.delta.content or ""
                    heard.calls += [call.model_dump(exclude={"index"}) for call in choice.delta.tool_calls or ()]
                if heard.content:
                    self._show(replace(self.view, speaking=heard.content))
                    piece()
        return heard

    def _account(self, heard: Heard) -> None:
        """Add a request to the numbers; at a rollover ask Infold what the prompt is made of."""
        view, usage = self.view, heard.usage
        if usage is None:
            raise DemoError("the answer came without its usage")
        before = view.window.tokens - view.window.block
        rolled = heard.forwarded - heard.block < before and heard.forwarded < heard.asked
        window = self._looked_at(heard) if rolled else replace(view.window, block=heard.block)
        rest = window.front + window.digest + window.tail + window.block
        window = replace(window, new=heard.forwarded - rest)
        cached = usage.prompt_tokens_details.cached_tokens or 0 if usage.prompt_tokens_details else 0
        written = usage.completion_tokens * self._prices.output
        direct = input_cost(heard.asked, cached_tokens(view.conversation - REPLY_TOKENS), self._prices)
        self._show(
            replace(
                view,
                window=window,
                request=view.request + 1,
                conversation=heard.asked,
                asked=view.asked + heard.asked,
                forwarded=view.forwarded + heard.forwarded,
                rollovers=view.rollovers + rolled,
                highest=max(view.highest, usage.prompt_tokens),
                usd_direct=view.usd_direct + direct + written,
                usd_infold=view.usd_infold + input_cost(usage.prompt_tokens, cached, self._prices) + written,
                usd_estimated=view.usd_estimated + heard.saved_usd,
                levels=(*view.levels, heard.forwarded),
            )
        )
        if rolled:
            self._news(Said("infold", rolled_over(before, window, self.view.rollovers)))
            self._wait(self._pace.rollover)

    def _looked_at(self, heard: Heard) -> Window:
        """The prompt of a turn by its parts."""
        explained = self._explanation(heard.turn)
        placements = explained.get("placements") or ()
        digest = sum(p["tokens"] for p in placements if p["form"] != "full")
        tail = sum(p["tokens"] for p in placements if p["form"] == "full" and p["why"] in TAIL)
        return Window(WINDOW, explained.get("front_tokens", self._front), digest, tail, heard.block)

    def _explanation(self, turn: str) -> Json:
        """GET /memory-manager/turns/{id}: the plan behind the newest attempt."""
        url = self._infold.base_url.join(f"/memory-manager/turns/{turn}")
        reply = self._infold.get(str(url), cast_to=httpx.Response)
        attempts: Sequence[Json] = reply.json()["attempts"]
        return attempts[-1]

    # Small steps.

    def _add(self, day: str, messages: Sequence[Json]) -> None:
        self._history.extend(messages)
        self._days.extend([day] * len(messages))

    def _news(self, *said: Said, day: str | None = None) -> None:
        self._show(replace(self.view, feed=(*self.view.feed, *said), speaking="", day=day or self.view.day))

    def _show(self, view: View) -> None:
        self.view = view
        self._stage.show(view)

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)

    def _tokens(self, message: Json) -> int:
        text = message.get("content") or json.dumps(message.get("tool_calls"))
        return self._counter.message(Message(message["role"], text, b""), self._model.encoding) + 8

    def _front_tokens(self) -> int:
        """System message, tools and the reply's own."""
        schemas = [json.dumps(tool, separators=(",", ":")).encode() for tool in self._story.tools]
        return self._tokens(self._story.system) + self._counter.schemas(schemas, self._model.encoding) + REPLY_TOKENS


TAIL = frozenset({"most recent", "newest user message"})


def sdk(url: str) -> openai.OpenAI:
    """The SDK as anybody has it; proxies of the environment are not asked, all is on this machine."""
    client = httpx.Client(trust_env=False, verify=False, timeout=TIMEOUT_SECONDS)  # plain HTTP: no certificates to load
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=client)


def noted(headers: httpx.Headers) -> Heard:
    """What Infold says of a request in its headers."""
    asked, _, forwarded = headers["x-infold-tokens"].partition("/")
    block, saved = headers.get("x-infold-block-tokens", 0), headers.get("x-infold-saved-usd", 0)
    return Heard(headers["x-infold-turn"], int(asked), int(forwarded), int(block), float(saved))


def shown(message: Json) -> Said:
    """A message as the picture tells it."""
    text = message.get("content") or ""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    if calls:
        text = "calls " + ", ".join(f"{call['name']}({call['arguments']})" for call in calls)
    return Said(message["role"], text)


def rolled_over(before: int, window: Window, rollovers: int) -> str:
    kept = window.front + window.digest + window.tail
    back = f", {window.block:,} quoted back" if window.block else ""
    return f"Rollover {rollovers}: {before:,} tokens before, {kept:,} now ({window.digest:,} of them digest){back}."


def is_right(answer: str, question: Question) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer) for value in question.expects)
