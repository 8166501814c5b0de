"""Every metric, with unit and help. Labels come from small closed sets, so never a session or a client's word.

A model is named where the shipped table or the operator names it; the others together are "other".
"""

from collections.abc import Collection
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from memory.meter import Meter
from memory.nouns import HygieneReport, ItemForm
from memory.store.usage import Spent
from memory.table import known_name

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ASKING = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)  # seconds; a model may read
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
OTHER = "other"


class Metrics(Meter):
    """One registry for one process; `app.py` makes it.

    Args:
        models: names of the models that have numbers of their own.
    """

    def __init__(self, models: Collection[str] = ()) -> None:
        self._models = frozenset(models)
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("infold_requests", "Managed requests, by mode and status class.", ["mode", "status"])
        self.upstreams = counter(
            "infold_upstream_answers",
            "Answers of upstreams to managed requests, hidden ones included, by upstream and status class.",
            ["upstream", "status"],
        )
        self.fallbacks = counter("infold_fallbacks", "Managed requests that went to a fallback.", ["upstream", "to"])
        self.tokens = counter(
            "infold_prompt_tokens",
            "Prompt tokens: asked by clients, forwarded upstream, hidden requests included.",
            ["side"],
        )
        self.block_tokens = counter("infold_block_tokens", "Prompt tokens of re-injected blocks.")
        self.rollovers = counter("infold_rollovers", "Rollovers made.")
        self.recalls = counter("infold_recalls", "Calls of the recall tool, by what they brought.", ["found"])
        self.turns = counter("infold_turns", "Turns by where they are safe: committed, spooled, unrecorded.", ["kept"])
        self.passed_through = counter(
            "infold_passed_through", "Requests forwarded without memory, by reason.", ["reason"]
        )
        self.ignored_sessions = counter("infold_ignored_session_ids", "X-Session-Id headers that were malformed.")
        self.prepare = histogram("infold_prepare_seconds", "Seconds spent before forwarding.", buckets=SECONDS)
        self.record = histogram("infold_record_seconds", "Seconds until a turn was safe.", buckets=SECONDS)
        self.rest = counter(
            "infold_rest_requests", "Requests to /memory-manager, by status class.", ["endpoint", "status"]
        )
        self.database = gauge("infold_database_available", "1 while the database answers.")
        self.spooled = gauge("infold_spooled_turns", "Turns that wait on disk for the database.")
        self.jobs = gauge("infold_jobs_pending", "Background jobs that wait or run.")

        self.used = counter(
            "infold_tokens",
            "Tokens as providers count them: input, those of it that were cached, output.",
            ["model", "kind"],
        )
        self.cost = counter("infold_cost_usd", "US dollars that calls of models cost.", ["model"])
        self.direct_cost = counter(
            "infold_direct_cost_usd", "US dollars that the same calls would have cost directly.", ["model"]
        )
        self.own_cost = counter(
            "infold_own_cost_usd", "US dollars that our own calls of models cost, for summaries.", ["model"]
        )
        self.unpriced = counter(
            "infold_unpriced_calls", "Calls whose price is not known; no cost counts them.", ["model"]
        )
        self.utilization = histogram(
            "infold_context_utilization",
            "Forwarded prompts as shares of the model's window.",
            ["model"],
            buckets=SHARES,
        )
        self.items_added = counter("infold_items_added", "Items stored, by form.", ["form"])
        self.item_searches = counter(
            "infold_item_searches", "Searches of items, by plan: exact, kept, bits, graph, words, none.", ["plan"]
        )
        self.item_search = histogram("infold_item_search_seconds", "Seconds to search items.", buckets=SECONDS)
        self.item_retrieve = histogram(
            "infold_item_retrieve_seconds", "Seconds to read an item by its id.", buckets=SECONDS
        )
        self.asks = counter(
            "infold_asks", "Questions to the memory, by who answered: model, passages, nothing.", ["by"]
        )
        self.ask = histogram("infold_ask_seconds", "Seconds to answer a question to the memory.", buckets=ASKING)
        self.hygiene_items = counter(
            "infold_hygiene_items", "Items that POST hygiene compressed, archived, deleted, kept.", ["action"]
        )
        self.isolated = counter("infold_quarantined", "Contents isolated, by a person, a detector, a program.", ["by"])
        self.questions = gauge("infold_human_requests_pending", "Questions that wait for an answer.")
        self.embedding = gauge("infold_items_embedding_pending", "Items that wait for their embedding.")
        self.listeners = gauge("infold_event_listeners", "Open streams of events.")

    # What the memory tells.

    def added(self, form: ItemForm) -> None:
        self.items_added.labels(form.name.lower()).inc()

    def searched(self, plan: str, seconds: float) -> None:
        self.item_searches.labels(plan).inc()
        self.item_search.observe(seconds)

    def retrieved(self, seconds: float) -> None:
        self.item_retrieve.observe(seconds)

    def asked(self, by: str, seconds: float) -> None:
        self.asks.labels(by).inc()
        self.ask.observe(seconds)

    def tidied(self, report: HygieneReport) -> None:
        for action in ("compressed", "archived", "deleted", "kept"):
            self.hygiene_items.labels(action).inc(getattr(report, action))

    def quarantined(self, by: str) -> None:
        self.isolated.labels(by).inc()

    def spent(self, spent: Spent) -> None:
        model = self.model(spent.model)
        self.used.labels(model, "input").inc(spent.input_tokens)
        self.used.labels(model, "cached").inc(spent.cached_tokens)
        self.used.labels(model, "output").inc(spent.output_tokens)
        if spent.cost_usd is None:
            self.unpriced.labels(model).inc()
            return
        direct = spent.cost_usd if spent.direct_usd is None else spent.direct_usd
        self.cost.labels(model).inc(spent.cost_usd)
        self.direct_cost.labels(model).inc(max(0.0, direct))  # an estimate; a counter never falls

    def model(self, name: str) -> str:
        """A model's name as a label."""
        return known_name(name, self._models) or OTHER

    def render(self) -> bytes:
        return generate_latest(self.registry)
