"""What comes and goes over `/memory-manager`: the types that both the server and its OpenAPI document go by.

Fields of requests are described here and checked by `memory.check`, so that REST and the Python class refuse a value
with the same sentence. Unknown fields are ignored: clients of the well-known API send more than we need.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta

from memory import nouns
from memory.check import MOST_LIMIT, MOST_NAME_CHARS, MOST_PASSAGES, MOST_TYPE_CHARS
from memory.errors import InvalidRequest
from proxy.errors import NoJson

T = TypeVar("T")

Content = Annotated[Any, Meta(description="Text to keep.", extra_json_schema={"type": "string", "minLength": 1})]
Words = Annotated[Any, Meta(extra_json_schema={"type": "string", "minLength": 1})]
Name = Annotated[Any, Meta(extra_json_schema={"type": "string", "minLength": 1, "maxLength": MOST_NAME_CHARS})]
Kind = Annotated[Any, Meta(extra_json_schema={"type": "string", "minLength": 1, "maxLength": MOST_TYPE_CHARS})]
Names = Annotated[
    Any, Meta(extra_json_schema={"type": ["array", "null"], "items": {"type": "string"}, "maxItems": 1000})
]
Id = Annotated[Any, Meta(extra_json_schema={"type": "string"})]
MaybeName = Annotated[Any, Meta(extra_json_schema={"type": ["string", "null"], "maxLength": MOST_NAME_CHARS})]
Flag = Annotated[Any, Meta(extra_json_schema={"type": "boolean"})]
Priority = Annotated[
    Any,
    Meta(
        description="1 to 10, 10 highest; 0: not set, kind and role decide.",
        extra_json_schema={"type": "integer", "minimum": 0, "maximum": 10},
    ),
]
Metadata = Annotated[
    Any, Meta(description="Any object, up to 64 KiB as JSON.", extra_json_schema={"type": ["object", "null"]})
]
Limit = Annotated[Any, Meta(extra_json_schema={"type": "integer", "minimum": 1, "maximum": MOST_LIMIT})]
PassageLimit = Annotated[
    Any,
    Meta(
        description="Passages that are read.",
        extra_json_schema={"type": "integer", "minimum": 1, "maximum": MOST_PASSAGES},
    ),
]
Tokens = Annotated[Any, Meta(extra_json_schema={"type": "integer", "minimum": 0, "maximum": 10**9})]
Status = Annotated[Any, Meta(extra_json_schema={"type": ["string", "null"], "enum": [*nouns.TaskStatus, None]})]
Progress = Annotated[
    Any, Meta(description="Percent.", extra_json_schema={"type": ["number", "null"], "minimum": 0, "maximum": 100})
]
Scope = Annotated[
    Any,
    Meta(
        description="`session`: seen from the item's session alone. `tenant`: from all of the tenant's.",
        extra_json_schema={"enum": ["session", "tenant"]},
    ),
]
PageLimit = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MOST_LIMIT})]
Cursor = Annotated[str | None, Meta(description="`next` of the page before.")]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a request brings."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer but a refusal."""

    success: Literal[True] = True


class Done(Answer, frozen=True, kw_only=True):
    message: str


class Fault(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(msgspec.Struct, frozen=True):
    """OpenAI's error, and its message once more where other clients look for it."""

    error: Fault
    detail: str


class Page(Asked, frozen=True, kw_only=True):
    cursor: Cursor = None
    limit: PageLimit = 100


# Parsing


def parse(raw: bytes, type: type[T]) -> T:
    """A request's body; an empty one is an empty object.

    Raises:
        NoJson: no JSON, or no object.
        InvalidRequest: a field is missing; it is named.
    """
    value = json_value(raw or b"{}")
    if not isinstance(value, dict):
        raise NoJson("The body must be a JSON object.")
    return convert(value, type)


def json_value(raw: bytes) -> object:
    """JSON as Python values; half a surrogate pair is let through, for `memory.check` names the field it is in."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return json.loads(raw, parse_constant=no_number)
    except RecursionError:
        raise NoJson("The body is nested too deeply.") from None
    except ValueError as error:  # also bad UTF-8
        raise NoJson(f"The body is no JSON: {position(error)}.") from None


def no_number(name: str) -> object:
    raise ValueError(f"{name} is no number")


def position(error: ValueError) -> str:
    """Where it went wrong, without a word of what stood there."""
    match error:
        case json.JSONDecodeError():
            return f"{error.msg} at character {error.pos + 1}"
        case UnicodeDecodeError():
            return f"it is no UTF-8 at byte {error.start + 1}"
        case _:
            return str(error)


def parse_query(pairs: Sequence[tuple[str, str]], type: type[T]) -> T:
    """A query string.

    Raises:
        InvalidRequest: a parameter is there twice, or is no number where one is due.
    """
    given: dict[str, object] = {}
    for name, value in pairs:
        if name in given:
            raise InvalidRequest(f"{name} must be there once", name)
        given[name] = value
    return convert(given, type)


def convert(value: Mapping[str, object], type: type[T]) -> T:
    try:
        return msgspec.convert(value, type, strict=False)
    except msgspec.ValidationError as error:
        raise explained(str(error)) from None


EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def explained(message: str) -> InvalidRequest:
    """msgspec's sentence in our words.

    >>> str(explained("Object missing required field `content`"))
    'content is required'
    >>> str(explained("Expected `int | null`, got `str` - at `$.limit`"))
    'limit must be a whole number, got text'
    """
    if missing := re.search(r"missing required field `(\w+)`", message):
        return InvalidRequest(f"{missing[1]} is required", missing[1])
    wrong = re.search(r"Expected `(\w+)[^`]*`, got `(\w+)`.*at `\$\.(\w+)", message)
    if wrong is None:
        return InvalidRequest(message)
    due, got, field = wrong.groups()
    return InvalidRequest(f"{field} must be {EXPECTED.get(due, due)}, got {EXPECTED.get(got, got)}", field)


# Items


class ItemAdd(Asked, frozen=True, kw_only=True):
    content: Content
    content_type: Kind
    priority: Priority = 0
    metadata: Metadata = None
    auto_compress: Flag = True
    scope: Scope = "session"


class ItemRetrieve(Asked, frozen=True, kw_only=True):
    item_id: Id
    decompress: Flag = True


class ItemSearch(Asked, frozen=True, kw_only=True):
    query: Words
    limit: Limit = 5
    content_types: Names = None
    include_archived: Flag = False


class Question(Asked, frozen=True, kw_only=True):
    question: Words
    limit: PassageLimit = 3


class Answered(Answer, frozen=True, kw_only=True):
    """What the memory says to a question."""

    answer: Annotated[str | None, Meta(description="null: nothing in the memory answers that.")]
    by: Annotated[
        Literal["model", "passages"],
        Meta(description="Who answers: the local model, or sentences of the passages, word for word."),
    ]
    reason: Annotated[
        nouns.NoModel | None,
        Meta(description="Why no model answers; `not_supported`: it said what no passage says."),
    ]
    sources: Annotated[list[nouns.Source], Meta(description="What the answer rests on, the most first.")]


class ItemChange(Asked, frozen=True, kw_only=True):
    """At least one of them."""

    priority: Priority = UNSET
    pin: Flag = UNSET
    metadata: Metadata = UNSET
    correction: Annotated[
        Any, Meta(description="The new content.", extra_json_schema={"type": "string", "minLength": 1})
    ] = UNSET
    archived: Flag = UNSET


class ItemPage(Page, frozen=True, kw_only=True):
    status: Annotated[
        str | None, Meta(description="Both where it is left out.", extra_json_schema={"enum": ["active", "archived"]})
    ] = None


class ContextQuery(Asked, frozen=True, kw_only=True):
    max_tokens: Annotated[int | None, Meta(extra_json_schema={"minimum": 1})] = None
    query: Annotated[str | None, Meta(description="What the context is for: what fits it comes first.")] = None


class HygieneRun(Asked, frozen=True, kw_only=True):
    dry_run: Flag = False


class TokensUsed(Asked, frozen=True, kw_only=True):
    input_tokens: Tokens
    output_tokens: Tokens


class ItemAdded(Done, frozen=True, kw_only=True):
    item_id: str


class OneItem(Answer, frozen=True, kw_only=True):
    item: nouns.MemoryItem


class ItemsFound(Answer, frozen=True, kw_only=True):
    results: list[nouns.FoundItem]
    count: int


class ItemsListed(Answer, frozen=True, kw_only=True):
    items: list[nouns.MemoryItem]
    next: str | None


class State(Answer, frozen=True, kw_only=True):
    state: nouns.MemoryStateSnapshot


class StateExport(Answer, frozen=True, kw_only=True):
    state_json: Annotated[str, Meta(description="JSON text.")]


class Context(Answer, frozen=True, kw_only=True):
    context: nouns.WorkingContext


class Tidied(Done, frozen=True, kw_only=True):
    report: nouns.HygieneReport


# The work board, people, quarantine


class TaskCreate(Asked, frozen=True, kw_only=True):
    title: Name
    description: Annotated[Any, Meta(extra_json_schema={"type": "string"})] = ""
    priority: Priority = 0
    assigned_agent: MaybeName = None
    dependencies: Names = None
    metadata: Metadata = None


class TaskUpdate(Asked, frozen=True, kw_only=True):
    task_id: Id
    status: Status = None
    progress: Progress = None
    metadata: Annotated[
        Any, Meta(description="Replaces what was there.", extra_json_schema={"type": ["object", "null"]})
    ] = None


class TaskAssign(Asked, frozen=True, kw_only=True):
    agent_id: Annotated[
        Any, Meta(description="Left out: the one that fits.", extra_json_schema={"type": ["string", "null"]})
    ] = None


class TaskQuery(Asked, frozen=True, kw_only=True):
    status: Annotated[str | None, Meta(extra_json_schema={"enum": [*nouns.TaskStatus]})] = None


class AgentCreate(Asked, frozen=True, kw_only=True):
    agent_name: Name
    agent_type: Kind
    capabilities: Annotated[Any, Meta(extra_json_schema={"type": "array", "items": {"type": "string"}})]
    assigned_tools: Names = None
    metadata: Metadata = None


class AgentQuery(Asked, frozen=True, kw_only=True):
    agent_type: str | None = None


class QuarantinePut(Asked, frozen=True, kw_only=True):
    content: Content
    context_type: Kind
    reason: Words
    metadata: Metadata = None


class HumanAsk(Asked, frozen=True, kw_only=True):
    question: Words
    priority: Priority = 0
    metadata: Metadata = None


class HumanAnswer(Asked, frozen=True, kw_only=True):
    hil_id: Id
    response: Words


class HumanQuery(Asked, frozen=True, kw_only=True):
    wait: Annotated[
        float,
        Meta(
            description="Seconds to wait for a request where there is none.",
            extra_json_schema={"minimum": 0, "maximum": 60},
        ),
    ] = 0


class TaskMade(Done, frozen=True, kw_only=True):
    task_id: str


class TasksListed(Answer, frozen=True, kw_only=True):
    tasks: list[nouns.Task]
    count: int


class AgentMade(Done, frozen=True, kw_only=True):
    agent_id: str


class AgentsListed(Answer, frozen=True, kw_only=True):
    agents: list[nouns.Agent]
    count: int


class Quarantined(Done, frozen=True, kw_only=True):
    thread_id: str


class QuarantineListed(Answer, frozen=True, kw_only=True):
    contexts: list[nouns.QuarantinedContext]
    count: int


class QuarantineRead(Answer, frozen=True, kw_only=True):
    context: nouns.QuarantinedContext


class HumanAsked(Done, frozen=True, kw_only=True):
    hil_id: str


class HumanListed(Answer, frozen=True, kw_only=True):
    requests: list[nouns.HumanRequest]
    count: int


# Records


class Confirm(Asked, frozen=True, kw_only=True):
    confirm: Annotated[Any, Meta(description="The word `erase`.", extra_json_schema={"const": "erase"})]


class TurnRead(Answer, frozen=True, kw_only=True):
    """A turn, explained. There are more fields than are named here."""

    id: str
    session: str
    model: str
    status: str
    created_at: str
    asked: list[dict[str, Any]]
    attempts: list[dict[str, Any]]


class TurnQuery(Page, frozen=True, kw_only=True):
    session: Annotated[str | None, Meta(description="Of this session alone.")] = None


class UsageQuery(Asked, frozen=True, kw_only=True):
    by: Annotated[str, Meta(extra_json_schema={"enum": ["day", "model", "session"]})] = "day"
    since: Annotated[str | None, Meta(description="A date, or a time in ISO 8601.")] = msgspec.field(
        default=None, name="from"
    )
    until: Annotated[str | None, Meta(description="Likewise; itself left out.")] = msgspec.field(
        default=None, name="to"
    )
    session: str | None = None
    limit: PageLimit = MOST_LIMIT


class SessionsListed(Answer, frozen=True, kw_only=True):
    sessions: list[nouns.Session]
    next: str | None


class SessionRead(Answer, frozen=True, kw_only=True):
    session: nouns.Session


class TurnsListed(Answer, frozen=True, kw_only=True):
    turns: list[nouns.TurnEntry]
    next: str | None


class UsageTold(Answer, frozen=True, kw_only=True):
    usage: list[nouns.UsageSum]
    by: str


class Imported(Answer, frozen=True, kw_only=True):
    counts: Annotated[dict[str, dict[str, int]], Meta(description="By kind: imported, present, refused, ignored.")]


class Erased(Answer, frozen=True, kw_only=True):
    counts: Annotated[dict[str, int], Meta(description="Rows of each table.")]


class ToolsListed(Answer, frozen=True, kw_only=True):
    tools: Annotated[list[dict[str, Any]], Meta(description="OpenAI function definitions.")]


class ToolArguments(Asked, frozen=True, kw_only=True):
    """What the tool's `parameters` describe."""


class ToolRan(Answer, frozen=True, kw_only=True):
    result: Any
