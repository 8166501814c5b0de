"""What programs see of the memory: items, working contexts, tasks, agents, human requests, quarantine.

All of it is frozen; `msgspec.to_builtins` makes plain dictionaries of it.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any, Literal
from uuid import UUID

import msgspec

NIL = UUID(int=0)  # the session of what is shared by all sessions of a tenant

Clock = Callable[[], datetime]  # aware, in UTC
Metadata = Mapping[str, object]


def utc_now() -> datetime:
    return datetime.now(UTC)


class CompressionStrategy(StrEnum):
    AGGRESSIVE = "aggressive"
    BALANCED = "balanced"
    CONSERVATIVE = "conservative"


class MemoryApproach(StrEnum):
    EXTERNAL_LLM = "external_llm"
    SLM = "slm"


class TaskStatus(StrEnum):
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class HumanStatus(StrEnum):
    PENDING = "pending"
    ANSWERED = "answered"
    EXPIRED = "expired"


class QuarantineState(StrEnum):
    PROPOSED = "proposed"  # a detector found something; it stays usable until a person isolates it
    ISOLATED = "isolated"
    RELEASED = "released"


class ItemForm(IntEnum):
    """How an item stands in the prompt; the numbers are those of `infold.items.form`."""

    FULL = 0
    SUMMARY = 1
    HINT = 2
    NONE = 3  # only search finds it


class ItemStatus(IntEnum):
    """The numbers are those of `infold.items.status`."""

    ACTIVE = 0
    ARCHIVED = 1
    QUARANTINED = 2


class Principal(msgspec.Struct, frozen=True):
    """Who acts, for the audit and for rights."""

    tenant: bytes
    actor: str  # "key:1a2b3c4d", "local", "job", "cli"
    is_person: bool = False  # came with a key of its own, or is the command line


class Place(msgspec.Struct, frozen=True):
    """A named session of a tenant; `memory.identify.place` makes it."""

    tenant: bytes
    name: str
    id: UUID

    @property
    def scope(self) -> list[UUID]:
        """The sessions whose items are seen from here: this one, and what is shared."""
        return [self.id, NIL]


class MemoryItem(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    session_id: str
    content_type: str
    full_content: str | None  # None where it was asked for without, and beyond what one answer holds
    compressed_summary: str
    token_count: int
    compressed_token_count: int
    compression_ratio: float  # of the summary's tokens to the content's, at most 1
    is_active: bool
    priority: int  # 1-10, 10 highest; 0: not set
    access_count: int
    last_accessed: datetime
    created_at: datetime
    updated_at: datetime
    metadata: dict[str, Any]
    is_pinned: bool = False
    scope: Literal["session", "tenant"] = "session"
    form: str = "full"


class Passage(msgspec.Struct, frozen=True):
    """A piece of an item's content; `start` and `stop` count characters."""

    start: int
    stop: int
    text: str


class FoundItem(MemoryItem, frozen=True, kw_only=True):
    score: float  # 0-1, higher is closer
    distance: float | None  # cosine distance of the best passage; None: not embedded
    passage: Passage | None = None


class FullEntry(msgspec.Struct, frozen=True):
    id: str
    type: str
    content: str
    tokens: int
    start: int | None = None  # characters of the item's content, where only a part of it stands here
    stop: int | None = None


class CompressedEntry(msgspec.Struct, frozen=True):
    id: str
    type: str
    summary: str
    tokens: int
    retrieval_hint: str


class WorkingContext(msgspec.Struct, frozen=True):
    full_items: list[FullEntry]
    compressed_items: list[CompressedEntry]
    total_tokens: int
    available_tokens: int


class ActiveEntry(msgspec.Struct, frozen=True):
    id: str
    type: str
    tokens: int
    compressed_tokens: int
    priority: int


class TokenUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    output_tokens: int
    total_cost: float  # USD


class Performance(msgspec.Struct, frozen=True):
    compressions: int
    decompressions: int
    cache_hits: int


class MemoryStateSnapshot(msgspec.Struct, frozen=True):
    """A session's memory; the sums are of all items, the lists of the first 1,000."""

    id: str
    session_id: str
    model_name: str
    total_context_length: int
    used_context_length: int
    available_context_length: int
    context_utilization_percentage: float
    active_items: list[ActiveEntry]
    compressed_items: list[ActiveEntry]
    token_usage_stats: TokenUsage
    performance_metrics: Performance
    created_at: datetime
    updated_at: datetime


class Task(msgspec.Struct, frozen=True):
    id: str
    session_id: str
    title: str
    description: str
    status: TaskStatus
    priority: int
    assigned_agent: str | None  # an agent's id, or whatever the program calls it
    dependencies: list[str]  # ids of the tasks that come first
    progress: float  # percent
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    metadata: dict[str, Any]


class Agent(msgspec.Struct, frozen=True):
    id: str
    session_id: str
    agent_name: str
    agent_type: str
    capabilities: list[str]
    assigned_tools: list[str]
    performance_stats: dict[str, int]  # its tasks: assigned, open, completed, cancelled
    is_active: bool
    created_at: datetime
    updated_at: datetime
    metadata: dict[str, Any]


class HumanRequest(msgspec.Struct, frozen=True):
    id: str
    session_id: str
    question: str
    response: str | None
    status: HumanStatus
    priority: int
    created_at: datetime
    answered_at: datetime | None
    metadata: dict[str, Any]
    expires_at: datetime


class QuarantinedContext(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    session_id: str
    thread_id: str
    context_type: str
    reason_for_isolation: str
    isolated_content: str | None = None  # None in lists: it is told to a reader that asks for it by its thread
    token_count: int
    is_active: bool  # isolated now: neither proposed nor released
    created_at: datetime
    updated_at: datetime
    metadata: dict[str, Any]
    state: QuarantineState


NoModel = Literal["no_model", "model_failed", "not_supported", "nothing_found"]  # why no model answers


class Source(msgspec.Struct, frozen=True):
    """What an answer rests on: an item, or a message of a conversation."""

    kind: Literal["item", "message"]
    id: str  # of the item, or of the message
    turn: str | None  # in which the message came; by its id it is explained
    session_id: str
    about: str  # the item's type, or the message's role
    created_at: datetime
    text: str  # the part of it that was read
    score: float  # higher is closer


class MemoryAnswer(msgspec.Struct, frozen=True):
    answer: str | None  # None: nothing in the memory answers that
    by: Literal["model", "passages"]  # passages: their own sentences
    reason: NoModel | None
    sources: list[Source]  # the one that says most of it first


class Tended(msgspec.Struct, frozen=True):
    id: str
    action: str  # "compress", "archive", "delete", "keep"
    why: str


class HygieneReport(msgspec.Struct, frozen=True):
    compressed: int
    archived: int
    deleted: int
    kept: int
    dry_run: bool
    items: list[Tended]  # the first 1,000


class UsageSum(msgspec.Struct, frozen=True):
    """What the calls of a day, a model or a session came to."""

    key: str  # "2026-01-05", a model's or a session's name
    calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    bill_usd: float  # of the calls whose price is known
    counterfactual_usd: float  # what the same calls would have cost without us
    own_usd: float  # spent by ourselves, on summaries
    unpriced_calls: int


class Event(msgspec.Struct, frozen=True):
    """Something happened; ids and numbers, never content."""

    id: str
    kind: str
    session_id: str | None
    data: dict[str, Any]
    at: datetime


class Session(msgspec.Struct, frozen=True):
    """A line of work: what programs stored under its name, and conversations that name it."""

    id: str
    items: int
    turns: int
    created_at: datetime


class TurnEntry(msgspec.Struct, frozen=True):
    """A turn in a list; by its id it is explained."""

    id: str
    session: str
    model: str
    status: str
    created_at: datetime


class Training(msgspec.Struct, frozen=True):
    """A training of an adapter; the adapter has the same id."""

    id: str
    state: str  # "queued", "running", "done", "refused", "failed", "stopped"
    why: str  # "manual", "conversations", "hours", "importance"
    force: bool
    samples: int  # messages that it learns from
    tries: int  # how often a trainer was started for it
    recipe: dict[str, Any]
    seed: int
    metrics: dict[str, Any]
    error: str | None
    queued_at: datetime
    begun_at: datetime | None
    ended_at: datetime | None


class AdapterTold(msgspec.Struct, frozen=True):
    """What a training made of the local model."""

    id: str
    number: int | None  # of its folder
    state: str  # "training", "trained", "evaluated", "canary", "active", "retired", "refused", "stale"
    base: str  # hash of the base model
    quantization: str
    served: bool  # an engine has loaded it
    asked: int  # questions that it answered
    accepted: int  # of these, such as held
    error: str | None
    reasons: list[str]  # of the gate's refusal
    table: list[dict[str, Any]]  # of the gate: rule, against, before, after, bound, held
    created_at: datetime
    updated_at: datetime


class LearningState(msgspec.Struct, frozen=True):
    """What of a tenant's conversations may be learnt from, and what was."""

    enabled: bool  # by the tenant
    allowed: bool  # by the operator
    trigger: str
    since: datetime | None  # what was said before is not learnt from
    samples: int  # messages that may be learnt from
    excluded: dict[str, int]  # messages that may not, by the reason
    new_samples: int  # since the last training
    new_conversations: int
    trainings: list[Training]  # newest first
    adapters: list[AdapterTold]  # newest first
