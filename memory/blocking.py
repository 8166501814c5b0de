"""LLMMemoryManager: the memory as a blocking class, for programs that use it directly.

Nothing but an event loop in a thread of its own and one call a method; what a method does is in `items.py`, `board.py`,
`humans.py` and `quarantine.py`. Ids are made before the first try, so a call that meets a database on the move is
simply made again.
"""

import atexit
import logging
import os
import sys
import uuid
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import structlog

from memory import check, house
from memory.ask import model_of
from memory.digest.fit import CountTokens
from memory.engine import Engine, patiently
from memory.environment import PROVIDERS, Surroundings, postgres_url, surroundings, variables
from memory.errors import Conflict, LLMMemoryError
from memory.identify import LOCAL_KEY, fingerprint, is_nobodys, new_id, place
from memory.items import Summarize
from memory.loop import LoopThread
from memory.models import ModelTable
from memory.nouns import Clock, CompressionStrategy, MemoryApproach, Principal, TaskStatus, utc_now
from memory.settings import Settings
from memory.slm.admit import Admitted
from memory.slm.own import OwnModel
from memory.snapshot import About, state_json
from memory.summarize import local, upstream
from memory.table import ConfigFile, in_effect, model_config, read_config
from memory.tokens import Counter

T = TypeVar("T")

Values = dict[str, Any]


class Default(str):
    """A default that can be told from the same text given."""


MODEL = Default("gpt-4o")
APPROACH = Default("external_llm")


class LLMMemoryManager:
    """The memory of one session of one tenant.

    Without database arguments it runs PostgreSQL inside: the first program on a data directory starts it, others
    attach, and one of them takes over when the first ends. Use it in a `with` block, or `close` it.
    """

    def __init__(
        self,
        db_host: str | None = None,
        db_port: int | None = None,
        db_name: str | None = None,
        db_user: str | None = None,
        db_password: str | None = None,
        model_name: str = MODEL,
        openai_api_key: str | None = None,
        anthropic_api_key: str | None = None,
        config_path: str | Path | None = None,
        memory_approach: MemoryApproach | str = APPROACH,
        use_slm: bool = False,
        use_lora_finetuning: bool = False,
        slm_model_name: str | None = None,
        session_id: str | None = None,
        tenant_key: str | None = None,
        *,
        data_dir: str | Path | None = None,
        settings: Settings | None = None,
        clock: Clock = utc_now,
    ) -> None:
        """All is checked before anything is started.

        Args:
            config_path: a JSON file with models and settings; `memory.table` reads it.
            memory_approach: with `slm`, as with `use_slm`, a local model reads what answers a question: the one that
                `infold serve` runs on the same data directory, else one of our own, started when it is first needed.
            slm_model_name: a name that `infold slm models` lists, a folder or a .gguf file; left out: whichever model a
                server runs, else SmolLM2.
            session_id: 1 to 128 of A-Z, a-z, 0-9 and . _ : -; a new one where none is given.
            tenant_key: whose memory it is; else `openai_api_key`, else the local tenant's.
            data_dir: of the embedded database.
            clock: gives the time, aware.

        Raises:
            ValueError: an argument is wrong; the message names it and what it may be.
            LLMMemoryError: the database does not start or cannot be reached, or the local model's weights or what runs
                it are missing; the message says what brings them.
        """
        be_quiet()
        values = variables()
        around = surroundings(values)
        said = around.model if isinstance(model_name, Default) and around.model else model_name
        approach = around.approach if isinstance(memory_approach, Default) and around.approach else memory_approach
        ours = settings or Settings()
        self._file = read_config(Path(config_path), ours) if config_path else ConfigFile({}, ours)
        self._models = ModelTable(self._file.models)
        self.model_config: Mapping[str, float] = model_config(said, self._models)
        self.model_name = str(said)
        self.memory_approach = check.choice(approach, "memory_approach", MemoryApproach)
        self.use_slm = check.flag(use_slm, "use_slm") or around.use_slm
        self.use_lora_finetuning = check.flag(use_lora_finetuning, "use_lora_finetuning") or around.use_lora
        self.slm_model_name = slm_model_name or around.slm_model_name
        self.session_id = place(b"", session_id or str(uuid.uuid4())).name
        self.config = in_effect(self._file, self._models)
        if clock().tzinfo is None:
            raise ValueError("clock must give aware datetimes")

        home = Path(data_dir) if data_dir else around.data_dir
        self._own = self._own_model(self.slm_model_name, home)
        key = tenant_key or openai_api_key or LOCAL_KEY
        self._counter = Counter()
        self._pid = os.getpid()
        self._summarize = self._summarizer(around, home, openai_api_key, anthropic_api_key)
        given = (db_host, db_port, db_name, db_user, db_password)
        dsn = postgres_url(values, *given) if any(value is not None for value in given) else around.dsn
        tenant = self._enter(dsn, home, key, around.pepper, clock)
        self._place = place(tenant, self.session_id)
        self._principal = Principal(tenant, "local" if is_nobodys(key) else f"key:{fingerprint(key)}")
        OPEN.add(self)

    def _own_model(self, name: str | None, data_dir: Path) -> OwnModel | None:
        """The local model, where it is wanted and nobody says at which URL it runs already."""
        slm = self._file.settings.slm
        wanted = self.use_slm or self.memory_approach is MemoryApproach.SLM
        if not wanted or slm.url is not None:
            return None
        return OwnModel(replace(slm, model=name or slm.model), data_dir, whichever=name is None)

    @property
    def _settings(self) -> Settings:
        settings = self._file.settings
        return settings if self._own is None else replace(settings, slm=self._own.slm)

    def _summarizer(
        self, around: Surroundings, data_dir: Path, openai_key: str | None, anthropic_key: str | None
    ) -> Summarize | None:
        """A small model, where one is wanted: the provider's with a key for it, else the local one."""
        summaries = self._settings.summaries
        url = around.upstream or PROVIDERS["openai"]
        if url == PROVIDERS["anthropic"]:
            key = anthropic_key or around.anthropic_api_key
        else:
            key = openai_key or around.openai_api_key
        if key and "upstream" in (summaries.by, around.summarizer):
            return upstream(url, key, self._counting, summaries.model)
        model = self._own or model_of(self._settings.slm)
        wanted = self._own is not None or "local" in (summaries.by, around.summarizer)
        if model is None or not wanted:
            return None
        return local(model, Admitted(self._settings.slm, data_dir / "models"), self._counting)

    def _enter(self, dsn: str | None, data_dir: Path, key: str, pepper: bytes | None, clock: Clock) -> bytes:
        """Reach the database, or run one in `data_dir`; gives the tenant whose memory it is."""
        self._house: house.House | None = None
        self._loop = LoopThread("infold memory")
        try:
            if dsn is None:
                self._house = house.enter(data_dir)
                dsn = self._house.serve()
            self._loop.start()
            self._engine = self._loop.call(self._open(dsn, clock))
            tenant = self._loop.call(self._engine.open(key, pepper))
            if self.use_lora_finetuning:
                self._loop.call(self._engine.whole.learning.allow(tenant))
            return tenant
        except BaseException:
            self._leave()
            raise

    async def _open(self, dsn: str, clock: Clock) -> Engine:
        return Engine(dsn, self._counter, self._models, self._settings, clock, self._summarize, self._own)

    def _counting(self, model: str) -> CountTokens:
        return partial(self._counter.text, encoding=self._models.find(model).encoding)

    def __repr__(self) -> str:
        return f"<LLMMemoryManager {self.session_id} of {self.model_name}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database and of the local model; what we run and nobody else uses ends. Again does nothing."""
        if self in OPEN and self._pid == os.getpid():
            OPEN.discard(self)
            self._loop.call(self._engine.close())
            self._leave()

    def _leave(self) -> None:
        if self._own is not None:
            self._own.close()  # first: a thread of the loop may be waiting for it to start
        self._loop.stop()
        entered, self._house = self._house, None
        if entered is not None:
            entered.leave()

    def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        return self._loop.call(patiently(work))

    # Texts.

    def count_tokens(self, text: str) -> int:
        """Tokens of a text for the model; special tokens such as <|endoftext|> are text."""
        if not isinstance(text, str):
            check.text(text, "text")
        return self._counter.text(text, self._models.find(self.model_name).encoding)

    def get_embedding(self, text: str) -> list[float]:
        """384 numbers, unit length."""
        checked = check.text(text, "text")
        vectors = self._call(lambda: self._engine.embedder.embed([checked]))
        return [float(number) for number in vectors[0]]

    def compress_content(
        self, content: str, content_type: str, strategy: CompressionStrategy | str = CompressionStrategy.BALANCED
    ) -> str:
        """A shorter text: aggressive keeps about a tenth, balanced a quarter, conservative a half."""
        return self._call(lambda: self._engine.items.compress(content, content_type, strategy, self.model_name))

    # Items.

    def add_memory_item(
        self,
        content: str,
        content_type: str,
        priority: int = 0,
        metadata: Mapping[str, Any] | None = None,
        auto_compress: bool = True,
        scope: str = "session",
    ) -> str:
        """Store a text; gives its id. With `scope="tenant"` all sessions of the tenant find it."""
        id = new_id()
        values = (content, content_type, priority, metadata, auto_compress, scope, id)
        return self._call(lambda: self._engine.items.add(self._place, self.model_name, *values)).id

    def retrieve_memory_item(self, item_id: str, decompress: bool = True) -> Values | None:
        """An item, counted as read; without `decompress` its `full_content` is None. None: there is no such item."""
        check.flag(decompress, "decompress")
        found = self._call(lambda: self._engine.items.retrieve(self._place.tenant, item_id, decompress))
        return mapping(found) if found else None

    def search_memory_semantic(
        self, query: str, limit: int = 5, content_types: Sequence[str] | None = None
    ) -> list[Values]:
        """Items by what they mean and say, best first; with `score` and `distance`. Does not count as reading."""
        types = list(content_types) if isinstance(content_types, tuple | set | frozenset) else content_types
        return mappings(self._call(lambda: self._engine.items.search(self._place, query, limit, types)))

    def ask(self, question: str, limit: int = 3) -> Values:
        """What the session's memory says to a question, and the items and messages that it rests on.

        A local model reads the `limit` best passages and answers, where one runs (`by` is `model`); else, or where it
        says what no passage says, the answer is their best sentences (`passages`).
        """
        return mapping(self._call(lambda: self._engine.whole.ask.ask(self._place.tenant, question, limit, self._place)))

    def wait_until_indexed(self, timeout_seconds: float = 600.0) -> bool:
        """Long items are embedded in the background: whether all of them are, when the time is over at the latest."""
        seconds = check.number(timeout_seconds, "timeout_seconds", 0, 86_400)
        return self._call(lambda: self._engine.indexed(self._place.tenant, seconds))

    def get_working_context(self, max_tokens: int | None = None, query: str | None = None) -> Values:
        """What belongs into a prompt of at most `max_tokens`; with a `query`, what answers it comes first."""
        items = self._engine.items
        return mapping(self._call(lambda: items.working_context(self._place, self.model_name, max_tokens, query)))

    def get_memory_state(self) -> Values:
        return mapping(self._call(lambda: self._engine.items.state(self._place, self.model_name)))

    def perform_chat_hygiene(self, dry_run: bool = False) -> Values:
        """Compress and archive what time has passed by; gives the counts. A dry run changes nothing and says why."""
        report = mapping(self._call(lambda: self._engine.items.hygiene(self._place, dry_run)))
        return report if dry_run else {name: report[name] for name in ("compressed", "archived", "deleted", "kept")}

    def track_token_usage(self, input_tokens: int, output_tokens: int) -> None:
        """Add to the session's tokens and cost."""
        items, id = self._engine.items, new_id()
        self._call(lambda: items.track_usage(self._place, self.model_name, input_tokens, output_tokens, id))

    def export_memory_state_json(self) -> str:
        about = About(self.memory_approach, self.use_slm, self.use_lora_finetuning)
        return self._call(lambda: state_json(self._engine.whole, self._place, self.model_name, about))

    # Tasks and agents.

    def create_task(
        self,
        title: str,
        description: str = "",
        priority: int = 0,
        assigned_agent: str | None = None,
        dependencies: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        id, values = new_id(), (title, description, priority, assigned_agent, dependencies, metadata)
        return self._call(lambda: self._engine.board.create_task(self._place, *values, id=id)).id

    def update_task(
        self,
        task_id: str,
        status: TaskStatus | str | None = None,
        progress: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Change what is given; metadata replaces the old."""
        values = (status, progress, metadata)
        self._call(lambda: self._engine.board.update_task(self._place.tenant, task_id, *values))

    def get_tasks(self, status: TaskStatus | str | None = None) -> list[Values]:
        """By priority, newest first."""
        return mappings(self._call(lambda: self._engine.board.tasks(self._place, status)))

    def create_agent(
        self,
        agent_name: str,
        agent_type: str,
        capabilities: Sequence[str],
        assigned_tools: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        id, values = new_id(), (agent_name, agent_type, capabilities, assigned_tools, metadata)
        return self._call(lambda: self._engine.board.create_agent(self._place, *values, id=id)).id

    def get_agents(self, agent_type: str | None = None) -> list[Values]:
        return mappings(self._call(lambda: self._engine.board.agents(self._place, agent_type)))

    # Quarantine.

    def quarantine_context(
        self, content: str, context_type: str, reason: str, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Take content, and every item that holds it, out of sight; gives the thread by which alone it is read."""
        if not self._file.quarantine:
            raise Conflict("context_quarantine_enabled is false in config_path")
        id, values = new_id(), (content, context_type, reason, metadata, self._principal)
        return self._call(lambda: self._engine.quarantine.isolate(self._place, *values, id=id))

    def get_quarantined_contexts(self) -> list[Values]:
        """What is held, newest first, without content."""
        held = self._call(lambda: self._engine.quarantine.listed(self._place))
        return mappings([one for one in held if one.is_active])

    def get_quarantined_context(self, thread_id: str) -> Values | None:
        """One with its content; the reading is written down. None: there is no such thread."""
        found = self._call(lambda: self._engine.quarantine.read(self._principal, thread_id))
        return mapping(found) if found else None

    # People.

    def request_human_input(self, question: str, priority: int = 0, metadata: Mapping[str, Any] | None = None) -> str:
        id = new_id()
        return self._call(lambda: self._engine.humans.ask(self._place, question, priority, metadata, id=id)).id

    def provide_human_response(self, hil_id: str, response: str) -> None:
        tenant = self._place.tenant
        self._call(lambda: self._engine.humans.answer(tenant, hil_id, response, self._principal))

    def get_pending_hil_requests(self) -> list[Values]:
        """By priority, oldest first."""
        return mappings(self._call(lambda: self._engine.humans.pending(self._place)))

    def wait_for_human_response(self, hil_id: str, timeout_seconds: float) -> Values:
        """The request once it is answered or has expired, or still pending when the time is over."""
        return mapping(self._call(lambda: self._engine.humans.wait(self._place.tenant, hil_id, timeout_seconds)))


def be_quiet() -> None:
    """Warnings alone, on stderr, in a program that has not set up structlog itself."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


def mapping(value: msgspec.Struct) -> Values:
    """Dictionaries and lists all the way down; dates stay dates."""
    made: Values = msgspec.to_builtins(value, builtin_types=(datetime,))
    return made


def mappings(values: Iterable[msgspec.Struct]) -> list[Values]:
    return [mapping(value) for value in values]


OPEN: "weakref.WeakSet[LLMMemoryManager]" = weakref.WeakSet()


def close_all() -> None:
    """What a program forgot to close."""
    for one in tuple(OPEN):
        try:
            one.close()
        except LLMMemoryError:  # its database has gone before it
            continue


atexit.register(close_all)
