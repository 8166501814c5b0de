"""What a command prints. Nothing that a client stored can steer a terminal: only printable characters go there."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

import typer

MOST_CELL_CHARS = 120
GAP, LEAST_ROOM, WIDEST = 2, 20, 10_000  # characters: between columns, of the last one, of a table
STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")  # JSON leaves these as they are
ERROR, USAGE, NOT_FOUND = 1, 2, 3  # exit codes


class Rows(NamedTuple):
    """A table; numbers stand right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    none: str = ""  # what is said where there are no rows


Shown = Iterable["str | Rows"]


def tell(pieces: Shown) -> None:
    for piece in pieces:
        if isinstance(piece, str):
            typer.echo(printable(piece))
        elif piece.rows:
            draw(piece)
        elif piece.none:
            typer.echo(piece.none)


def draw(table: Rows) -> None:
    """All columns as wide as they need; on a terminal the last one is cut where its line ends."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[cell(value) for value in row] for row in table.rows]
    columns = list(zip(table.columns, zip(*table.rows, strict=True), zip(*cells, strict=True), strict=True))
    taken = sum(GAP + max(map(cell_len, (name, *texts))) for name, _, texts in columns[:-1])
    terminal = Console()
    room = max(LEAST_ROOM, terminal.width - taken) if terminal.is_terminal else None
    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=any(table.columns))
    for place, (name, values, _) in enumerate(columns, 1):
        numbers = all(isinstance(value, int | float | None) for value in values)
        width = room if place == len(columns) and not numbers else None
        drawn.add_column(name, justify="right" if numbers else "left", no_wrap=True, max_width=width)
    for texts in cells:
        drawn.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in texts))
    console = Console(highlight=False, markup=False, emoji=False, width=WIDEST)
    with console.capture() as written:
        console.print(drawn)
    typer.echo("\n".join(line.rstrip() for line in written.get().splitlines()))


def cell(value: object) -> str:
    """A value in a table.

    >>> [cell(value) for value in (None, 12345, 0.25, ["a", "b"], "two\\nlines \\x1b[31m")]
    ['-', '12,345', '0.2500', 'a, b', 'two lines [31m']
    """
    match value:
        case None | "" | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4f}"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M}"
        case list():
            return one_line(", ".join(map(str, value)))
        case _:
            return one_line(str(value))


def one_line(text: str, most_chars: int = MOST_CELL_CHARS) -> str:
    """The beginning of a text in one line of printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most_chars]).split())
    return line if len(line) <= most_chars else f"{line[: most_chars - 1]}…"


def printable(text: str) -> str:
    """A text with its lines, and without what steers a terminal.

    >>> printable("one\\x1b[2J\\ntwo\\x9b31m")
    'one [2J\\ntwo 31m'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def as_json(answer: Any) -> str:
    """One document, of the same shape as REST gives it."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()
    return STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def fail(message: str, code: int = ERROR) -> NoReturn:
    say(message)
    raise typer.Exit(code)


def say(message: str) -> None:
    """What went wrong, on standard error."""
    typer.secho(f"infold: {message}", err=True, fg=typer.colors.RED)
