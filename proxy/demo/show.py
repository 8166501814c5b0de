"""What one sees of the demo: a live picture on a terminal, plain lines elsewhere, and the closing words for both."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

WIDEST = 110  # columns
FEED_MESSAGE_LINES = 3  # of one message that are shown
SPARKS = " ▁▂▃▄▅▆▇█"
COLOURS = {"front": "magenta", "digest": "yellow", "tail": "blue", "block": "green", "new": "cyan"}
STYLES = {
    "user": "bold cyan",
    "assistant": "bold white",
    "tool": "dim",
    "infold": "bold green",
    "provider": "bold red",
    "question": "bold cyan",
    "answer": "bold green",
}
QUIET = frozenset({"tool"})
EVENTS = frozenset({"infold", "provider", "question", "answer"})  # what plain lines tell


@dataclass(frozen=True, slots=True)
class Window:
    """What stands in the prompt, in tokens."""

    size: int
    front: int = 0  # system message, tools
    digest: int = 0
    tail: int = 0  # the client's own messages, kept at a rollover
    block: int = 0  # quoted back
    new: int = 0  # the client's own messages since then

    @property
    def tokens(self) -> int:
        return self.front + self.digest + self.tail + self.block + self.new


@dataclass(frozen=True, slots=True)
class Said:
    """A line of what happens."""

    who: str  # a key of STYLES
    text: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A question about the first minutes."""

    question: str
    answer: str
    right: bool
    source: str  # where the evidence came from
    alone: str  # the answer to the same question with nothing but the newest messages
    alone_right: bool
    quoted_back: bool  # the evidence stood in a re-injected block


@dataclass(frozen=True, slots=True)
class View:
    """All that is shown."""

    window: Window
    requests: int  # in the whole run
    request: int = 0
    day: str = ""
    conversation: int = 0  # tokens of the newest request as the client sent it
    asked: int = 0  # tokens of all requests so far
    forwarded: int = 0
    rollovers: int = 0
    highest: int = 0  # tokens of the largest prompt so far
    usd_direct: float = 0.0
    usd_infold: float = 0.0
    usd_estimated: float = 0.0  # saved, as `x-infold-saved-usd` says
    levels: tuple[int, ...] = ()  # tokens of each prompt
    feed: tuple[Said, ...] = ()
    speaking: str = ""  # what has come of the answer so far
    priced_as: str = ""

    @property
    def share(self) -> float:
        return self.forwarded / max(self.asked, 1)

    @property
    def saved(self) -> float:
        return 1 - self.usd_infold / self.usd_direct if self.usd_direct else 0.0


class Stage(Protocol):
    """Somewhere to show a run."""

    def show(self, view: View) -> None: ...


class Lines:
    """Plain lines: what happens between the messages, not the messages."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._week = ""

    def show(self, view: View) -> None:
        week = view.day.partition(",")[0]
        if week != self._week and view.request:
            self._week = week
            self._console.print(numbers_line(view), highlight=False, markup=False, soft_wrap=True)
        for said in view.feed[self._told :]:
            if said.who in EVENTS:
                self._console.print(f"{said.who}: {said.text}", highlight=False, markup=False, soft_wrap=True)
        self._told = len(view.feed)


def numbers_line(view: View) -> str:
    return (
        f"{view.day:<18} request {view.request:>3} of {view.requests}  asked {view.conversation:>7,}  forwarded"
        f" {view.window.tokens:>5,} of {view.window.size:,}  rollovers {view.rollovers:>2}  bill ${view.usd_direct:.2f}"
        f" directly, ${view.usd_infold:.2f} with Infold"
    )


class Picture:
    """A live picture, redrawn ten times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._view: View | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=10)

    def __enter__(self) -> "Picture":
        self._live.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, view: View) -> None:
        self._view = view

    def _render(self) -> RenderableType:
        if self._view is None:
            return Text("")
        return picture(self._view, min(self._console.width, WIDEST), self._console.height - 1)


def picture(view: View, width: int, height: int) -> RenderableType:
    """The whole picture, `width` columns by at most `height` lines."""
    inner = width - 4
    title = Text.assemble(
        ("Infold", "bold"),
        f"  one conversation, one model with a window of {view.window.size:,} tokens",
    )
    told = f"{view.day} · request {view.request} of {view.requests}"
    top = Panel(
        Group(
            bar(view.window, inner), legend(view.window), *sparks(view.levels, view.window.size, inner)
        ),
        title=title, title_align="left", subtitle=told, subtitle_align="right", width=width, box=box.ROUNDED,
    )  # fmt: skip
    middle = Panel(numbers(view, inner), width=width, box=box.ROUNDED, border_style="dim")
    room = max(height - 6 - 6 - 2, 3)
    bottom = Panel(feed(view, inner, room), width=width, height=room + 2, box=box.ROUNDED, border_style="dim")
    return Group(top, middle, bottom)


def bar(window: Window, width: int) -> Text:
    """The window from the left: what stands in it, and what is free."""
    text, drawn, tokens = Text(no_wrap=True), 0, 0
    for name, colour in COLOURS.items():
        tokens += getattr(window, name)
        upto = min(round(tokens / window.size * width), width)
        text.append("█" * (upto - drawn), style=colour)
        drawn = max(drawn, upto)
    return text.append("░" * (width - drawn), style="bright_black")


LABELS = {"front": "front", "digest": "digest", "tail": "tail", "block": "quoted back", "new": "new"}


def legend(window: Window) -> Text:
    text = Text(f"{window.tokens:,} of {window.size:,}  ", style="bold", no_wrap=True, overflow="ellipsis")
    for name, colour in COLOURS.items():
        text.append(" ■ ", style=f"not bold {colour}").append(f"{LABELS[name]} {getattr(window, name):,}", "not bold")
    return text


def sparks(levels: Sequence[int], size: int, width: int) -> list[Text]:
    """The size of the latest prompts, two lines high: a saw, not a ramp."""
    shown = levels[-width:]
    steps = [max(1, round(level / size * 2 * (len(SPARKS) - 1))) for level in shown]
    top = "".join(SPARKS[max(step - 8, 0)] for step in steps)
    low = "".join(SPARKS[min(step, 8)] for step in steps)
    return [Text(top, style="cyan", no_wrap=True), Text(low, style="cyan", no_wrap=True)]


def numbers(view: View, width: int) -> Table:
    """Tokens and dollars, with bars that compare them."""
    most = max(width - 61, 10)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="left", style="bold", width=10, no_wrap=True)
    grid.add_column(justify="right", width=17, no_wrap=True)
    grid.add_column(justify="right", width=17, no_wrap=True)
    grid.add_column(justify="left", no_wrap=True)
    grid.add_row("asked", f"{view.conversation:,} now", f"{view.asked:,} in all", measure(1, most, "bright_black"))
    row = f"{view.window.tokens:,} now", f"{view.forwarded:,} in all"
    grid.add_row("forwarded", *row, measure(view.share, most, "cyan"))
    direct, ours = f"${view.usd_direct:.2f} directly", f"${view.usd_infold:.2f} here"
    grid.add_row("bill", direct, ours, measure(1 - view.saved, most, "green"))
    grid.add_row("rollovers", f"{view.rollovers}", f"{view.saved:.0%} saved", f"at the prices of {view.priced_as}")
    return grid


def measure(share: float, width: int, colour: str) -> Text:
    filled = min(round(share * width), width)
    text = Text("━" * filled, style=colour, no_wrap=True)
    return text.append("━" * (width - filled), style="grey23").append(f" {share:.0%}")


def feed(view: View, width: int, lines: int) -> Text:
    """The latest messages, newest at the bottom."""
    shown: list[Text] = []
    said = [*view.feed[-lines:], *([Said("assistant", view.speaking)] if view.speaking else [])]
    for one in said:
        shown += told(one, width)
    return Text("\n").join(shown[-lines:])


def told(said: Said, width: int) -> list[Text]:
    """A message in a few lines; a tool's result in one."""
    most = 1 if said.who in QUIET else FEED_MESSAGE_LINES
    name = f"{said.who:>9}  "
    words = wrapped(said.text, width - len(name), most)
    style = "dim" if said.who in QUIET else "green" if said.who == "infold" else ""
    first = Text.assemble((name, STYLES[said.who]), (words[0], style))
    return [first, *(Text(" " * len(name) + line, style=style) for line in words[1:])]


def wrapped(text: str, width: int, most: int) -> list[str]:
    """At most `most` lines; a longer text ends in an ellipsis."""
    return wrap(" ".join(text.split()), width, max_lines=most, placeholder=" …") or [""]


def closing(view: View, answers: Sequence[Answered], width: int) -> RenderableType:
    """The answers with where they came from, the numbers, and how to start for real."""
    table = Table(
        box=box.SIMPLE_HEAD, title="Asked at the end, about the first minutes", title_style="bold", width=width
    )
    table.add_column("question", ratio=3)
    table.add_column("answer, read from the prompt", ratio=4)
    table.add_column("evidence", ratio=2, style="green")
    for one in answers:
        mark = ("✓ ", "green") if one.right else ("✗ ", "red")
        table.add_row(Text(one.question), Text.assemble(mark, one.answer), Text(one.source))
    return Group(table, Text.assemble(*summary(view, answers)))


def summary(view: View, answers: Sequence[Answered]) -> list[str | tuple[str, str]]:
    right = sum(one.right for one in answers)
    alone = sum(one.alone_right for one in answers)
    back = sum(one.right and one.quoted_back for one in answers)
    size = view.window.size
    return [
        (f"{view.requests} requests", "bold"),
        f", and at the end {view.conversation:,} tokens of conversation: {view.conversation / size:.1f} windows.\n",
        ("Tokens    ", "bold"),
        f"{view.asked:,} asked, {view.forwarded:,} forwarded ({view.share:.0%}); {view.rollovers} rollovers;"
        f" the largest prompt had {view.highest:,} of {size:,}.\n",
        ("Bill      ", "bold"),
        f"${view.usd_direct:.2f} directly, if the window had no end; ${view.usd_infold:.2f} with Infold:"
        f" {view.saved:.0%} less, at the prices of {view.priced_as}.\n",
        f"          Infold's own estimate of what it saved on input (x-infold-saved-usd): ${view.usd_estimated:.2f}.\n",
        ("Memory    ", "bold"),
        f"{right} of {len(answers)} questions answered, {back} of them from messages quoted back;"
        f" {alone} with the newest messages alone.\n\n",
        "All of it ran on this machine: the provider was a script that reads its prompt, Infold was the real one.\n",
        ("Start it for real:\n", "bold"),
        ("  infold serve --upstream https://api.openai.com/v1\n", "cyan"),
        ('  OpenAI(base_url="http://127.0.0.1:8808/v1")', "cyan"),
        "   # your code, your key; nothing else changes\n",
    ]
