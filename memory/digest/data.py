"""JSON arrays and objects: what the rows have in common, then whole rows and members. No record is ever cut."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count as counting
from itertools import islice

import msgspec

from memory.digest.fit import CountTokens, Piece, choose, fits, trim

SMALL_CHARS = 200  # a member up to here is told as it is; larger ones by their shape and their own members
MOST_ROWS = 1_000  # of an array, that are looked at: the first, the last, those that tell of errors, every n-th
MOST_KEYS = 40  # of a shape
DEPTH = 32  # of members within members

Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None
Parsed = dict[str, msgspec.Raw] | list[msgspec.Raw]  # members and rows as they were written
ALARMS = (b"error", b"Error", b"ERROR", b"fail", b"Fail", b"FAIL", b"warn", b"Warn", b"WARN", b"critical", b"CRITICAL")


def parse_json(text: str) -> Parsed | None:
    """A JSON object or array with its members as written; None for anything else, scalars included."""
    try:
        parsed: Parsed = msgspec.json.decode(text, type=Parsed)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    return parsed


def shorten_json(text: str, budget_tokens: int, count: CountTokens) -> str | None:
    """JSON with whole records only; None when the text is no JSON object or array, or is nested beyond reason.

    An array: `[123 rows {key: type, ...}]`, then rows as they were written, white space aside: the first, the last
    and those unlike the others, named by index. An object: its small members whole, of the others the shape and
    in turn their members, named by path. Equal rows are told once, with how often they come.
    """
    try:
        whole = msgspec.json.format(text, indent=-1)
        if fits(whole, budget_tokens, count):
            return whole
        pieces = list(told("", whole.encode(), 0.0, counting()))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    return trim([piece.text for piece in choose(pieces, budget_tokens, count)], budget_tokens, count)


def told(path: str, written: bytes, depth: float, places: Iterator[int]) -> Iterator[Piece]:
    """A value's own line, and the lines of what is inside; deeper ones are worth less."""
    text = written.decode()
    if path and (len(text) <= SMALL_CHARS or depth >= DEPTH or written[:1] not in b"[{"):
        shown = text if len(text) <= SMALL_CHARS else f"<{len(text):,} characters>"
        yield Piece(next(places), f"{path}: {shown}", 3.0 - depth)
        return
    parsed = msgspec.json.decode(written, type=Parsed)
    colon = f"{path}: " if path else ""
    if isinstance(parsed, list):
        indices = looked_at(parsed)
        values = [msgspec.json.decode(parsed[i]) for i in indices]
        yield Piece(next(places), f"{colon}[{len(parsed):,} rows{shape_of_rows(values)}]", 10.0 - depth)
        yield from told_rows(path, parsed, indices, values, depth, places)
        return
    yield Piece(next(places), f"{colon}{{{len(parsed):,} members}}", 10.0 - depth)
    for key, member in parsed.items():
        yield from told(f"{path}.{key}" if path else key, bytes(member), depth + 0.1, places)


def looked_at(rows: Sequence[msgspec.Raw]) -> list[int]:
    """Indices of the rows to look at, in order."""
    if len(rows) <= MOST_ROWS:
        return list(range(len(rows)))
    alarmed = (i for i, row in enumerate(rows) if any(word in bytes(row) for word in ALARMS))
    some = {*range(0, len(rows), len(rows) // (MOST_ROWS // 2) + 1), *range(20), *range(len(rows) - 20, len(rows))}
    return sorted(some | set(islice(alarmed, MOST_ROWS // 4)))


def told_rows(
    path: str,
    rows: Sequence[msgspec.Raw],
    indices: Sequence[int],
    values: Sequence[Json],
    depth: float,
    places: Iterator[int],
) -> Iterator[Piece]:
    """Distinct rows, whole: edges, outliers and rare shapes first."""
    times = Counter(map(bytes, rows))
    shapes = Counter(map(shape_key, values))
    extremes = extreme_rows(values)
    for n, (i, value) in enumerate(zip(indices, values, strict=True)):
        written = bytes(rows[i])
        often = times.pop(written, 0)
        if not often:
            continue
        edge = 1.0 * (i == 0) + 0.7 * (i == len(rows) - 1)
        unlike = 0.5 / shapes[shape_key(value)] + 0.4 * (n in extremes) + 0.5 * any(word in written for word in ALARMS)
        repeated = f" (x{often:,})" if often > 1 else ""
        yield Piece(next(places), f"{path}[{i}]: {written.decode()}{repeated}", 0.5 + edge + unlike - depth)


def extreme_rows(values: Sequence[Json]) -> frozenset[int]:
    """Places of rows with the smallest and the largest number under a key."""
    columns: dict[str, list[tuple[float, int]]] = {}
    for n, value in enumerate(values):
        if isinstance(value, dict):
            for key, member in islice(value.items(), MOST_KEYS):
                if isinstance(member, (int, float)) and not isinstance(member, bool):
                    columns.setdefault(key, []).append((member, n))
    return frozenset(n for column in columns.values() for _, n in (min(column), max(column)))


def shape_of_rows(values: Sequence[Json]) -> str:
    """` {key: type, ...}` of rows that are objects, ` of type` of others."""
    types: dict[str, set[str]] = {}
    others: set[str] = set()
    for value in values:
        if isinstance(value, dict):
            for key, member in value.items():
                types.setdefault(key, set()).add(type_name(member))
        else:
            others.add(type_name(value))
    keys = [f"{key}: {'|'.join(sorted(names))}" for key, names in islice(types.items(), MOST_KEYS)]
    if len(types) > MOST_KEYS:
        keys.append(f"{len(types) - MOST_KEYS:,} more keys")
    return (f" {{{', '.join(keys)}}}" if keys else "") + (f" of {'|'.join(sorted(others))}" if others else "")


def shape_key(value: Json) -> tuple[str, ...]:
    return tuple(sorted(value)) if isinstance(value, dict) else (type_name(value),)


def type_name(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "string"
        case Mapping():
            return "object"
        case _:
            return "array"
