"""JSON arrays and objects: what the rows have in common, then whole rows. No record is ever cut."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from memory.digest.facts import facts_line
from memory.digest.fit import CountTokens, Piece, choose, clean, fits, trim

SCALAR_CHARS = 200  # longer strings are text, not values

Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None


def parse_json(text: str) -> dict[str, msgspec.Raw] | list[msgspec.Raw] | None:
    """A JSON object or array with its members as written; None for anything else, scalars included."""
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw] | list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None


def shorten_json(text: str, budget_tokens: int, count: CountTokens) -> str | None:
    """JSON with whole records only, or None when the text is no JSON object or array.

    An array: `123 rows {key: type, ...}`, then rows as they were written, white space aside: the first, the last
    and those unlike the others. An object: `{...}` with its scalar members whole and the shape of the others.
    """
    parsed = parse_json(text)
    if parsed is None:
        return None
    whole = compact(text.encode())
    if fits(whole, budget_tokens, count):
        return whole
    if isinstance(parsed, list):
        lines = array_lines(parsed, budget_tokens, count)
    else:
        lines = object_lines(parsed, budget_tokens, count)
    told = trim(lines, budget_tokens, count)
    line = clean(facts_line(text, told, budget_tokens - count(told) - 2, count)) if told else ""
    return trim([told, line], budget_tokens, count)


def compact(raw: bytes | msgspec.Raw) -> str:
    """JSON without white space between its parts; numbers and strings as written."""
    return msgspec.json.format(bytes(raw), indent=-1).decode()


def array_lines(rows: Sequence[msgspec.Raw], budget_tokens: int, count: CountTokens) -> list[str]:
    """The head line with number and shape of the rows, then rows: first, last, rare shapes, spread."""
    values = [msgspec.json.decode(row) for row in rows]
    head = f"[{len(rows):,} rows{shape_of_rows(values)}]"
    room = budget_tokens - count(head) - 1
    shapes = Counter(map(shape_key, values))
    distinct: dict[str, int] = {}
    pieces = []
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        written = compact(row)
        if distinct.setdefault(written, i) != i:
            continue
        rare = 1 / shapes[shape_key(value)]
        edge = 2.0 * (i == 0) + 1.5 * (i == len(rows) - 1)
        pieces.append(Piece(i, written, edge + rare + outlier(value, values) + 1e-6 * ((i * 7919) % 1009)))
    chosen = choose(pieces, int(room * 0.8), count, joint_tokens=4)
    return [head, *(f"row {piece.place + 1}: {piece.text}" for piece in chosen)]


def outlier(value: Json, values: Sequence[Json]) -> float:
    """Rows that speak of errors stand out."""
    told = str(value)[:2_000].lower()
    return 1.0 if any(word in told for word in ("error", "fail", "warn", "critical")) else 0.0


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
    told = [f"{key}: {'|'.join(sorted(names))}" for key, names in islice(types.items(), 40)]
    if len(types) > 40:
        told.append(f"{len(types) - 40} more keys")
    objects = f" {{{', '.join(told)}}}" if told else ""
    return objects + (f" of {'|'.join(sorted(others))}" if others else "")


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


def object_lines(members: Mapping[str, msgspec.Raw], budget_tokens: int, count: CountTokens) -> list[str]:
    """One line per member: whole if it fits, else its shape."""
    pieces = []
    for i, (key, raw) in enumerate(members.items()):
        written = compact(raw)
        name = msgspec.json.encode(key).decode()
        small = len(written) <= SCALAR_CHARS
        pieces.append(Piece(i, f"{name}: {written if small else shape(raw)}", 2.0 if small else 1.0))
        if not small:
            pieces.append(Piece(i, f"{name}: {written}", 0.5 - min(len(written), 10**6) / 10**7))
    head = f"{{{len(members):,} members}}"
    room = int((budget_tokens - count(head)) * 0.9)
    chosen = choose(pieces, room, count)
    whole = {piece.place for piece in chosen if piece.worth <= 0.5}
    return [head, *(piece.text for piece in chosen if piece.worth > 0.5 or piece.place in whole)]


def shape(raw: msgspec.Raw) -> str:
    value = msgspec.json.decode(raw)
    match value:
        case list():
            return f"[{len(value):,} rows{shape_of_rows(value)}]"
        case dict():
            return f"{{{len(value):,} members: {', '.join(islice(value, 40))}}}"
        case str():
            return f"<{len(value):,} characters>"
        case _:
            return f"<{type_name(value)}>"
