"""All that programs do with the memory, wired: one value for the class, for REST and for the command line."""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from memory.ask import ENCODING, Ask, model_of, reads_together
from memory.board import Board
from memory.detect import secrets_in
from memory.embed import Embedder
from memory.events import Events
from memory.gather import Gather
from memory.humans import Humans
from memory.items import Items, Summarize
from memory.learning import Learning
from memory.lookout import Lookout
from memory.meter import UNCOUNTED, Meter
from memory.models import ModelTable
from memory.nouns import Clock, utc_now
from memory.portable import Portable
from memory.quarantine import Quarantine
from memory.readers import Adapted, Readers
from memory.sessions import Sessions
from memory.settings import Settings, Slm
from memory.slm.adapting import adapting, base_name
from memory.slm.client import ModelAt
from memory.state import Shares
from memory.store.pool import Pool
from memory.store.signals import Signals
from memory.tokens import Counter
from memory.usage import UsageBook


@dataclass(frozen=True, slots=True)
class Memory:
    """`signals.run()` belongs into a task of whoever waits for answers or events."""

    pool: Pool
    items: Items
    board: Board
    humans: Humans
    quarantine: Quarantine
    lookout: Lookout
    usage: UsageBook
    portable: Portable
    sessions: Sessions
    signals: Signals
    events: Events
    ask: Ask
    learning: Learning
    clock: Clock


def memory(
    pool: Pool,
    dsn: str,
    counter: Counter,
    models: ModelTable,
    settings: Settings,
    clock: Clock = utc_now,
    embedder: Embedder | None = None,
    summarize: Summarize | None = None,
    meter: Meter = UNCOUNTED,
    reader: ModelAt | None = None,
) -> Memory:
    """Over a pool of its own: a timeout shuts the gate of a pool for all who use it.

    Args:
        reader: reads what answers a question; None: the one that `settings.slm` names.

    Raises:
        ValueError: a clock without a time zone.
    """
    if clock().tzinfo is None:
        raise ValueError("the clock must give times with a time zone")
    signals = Signals(dsn)
    quarantine = Quarantine(pool, counter, clock, settings, meter=meter)

    def shares(name: str) -> Shares:
        model = models.find(name)
        return Shares(model.trigger_share, model.safe_share)

    items = Items(
        pool, counter, models, settings, clock, embedder, summarize, secrets_in, quarantine, shares, meter,
    )  # fmt: skip
    quarantine.restore_with(items.restore)
    count = partial(counter.text, encoding=ENCODING)
    gather = Gather(pool, items, embedder, count, settings.recall.floor)
    signals.listen(items.heard)
    model = reader or model_of(settings.slm)
    return Memory(
        pool=pool,
        items=items,
        board=Board(pool, clock),
        humans=Humans(pool, clock, signals, timedelta(hours=settings.work.human_expiry_hours)),
        quarantine=quarantine,
        lookout=Lookout(quarantine, settings.quarantine, secrets_in),
        usage=UsageBook(pool),
        portable=Portable(pool, items, clock),
        sessions=Sessions(pool, clock),
        signals=signals,
        events=Events(pool, signals),
        ask=Ask(
            gather,
            count,
            model,
            settings.slm.window,
            reads_together(base_name(settings.slm)),
            meter,
            readers=readers(pool, settings.slm, model),
        ),
        learning=Learning(pool, settings.slm, clock),
        clock=clock,
    )


def readers(pool: Pool, slm: Slm, model: ModelAt | None) -> Readers | None:
    """Where learning is on, each tenant's own; without a lookup else."""
    if model is None or slm.url is None or not slm.learning.enabled:
        return None
    url, names = slm.url, adapting(slm)

    def named(adapter: str) -> ModelAt:
        return ModelAt(url, names.model_name(adapter), slm.key)

    return Adapted(pool, model, base_name(slm), named, slm.learning.canary_share)
