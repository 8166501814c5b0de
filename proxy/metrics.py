"""Every metric, with unit and help. Labels come from small closed sets, so never a session or a model name."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """One registry for one process; `app.py` makes it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "infold_requests", "Managed requests, by mode and status class.", ["mode", "status"], registry=r
        )
        self.tokens = Counter(
            "infold_prompt_tokens", "Prompt tokens: asked by clients, forwarded upstream.", ["side"], registry=r
        )
        self.block_tokens = Counter("infold_block_tokens", "Prompt tokens of re-injected blocks.", registry=r)
        self.rollovers = Counter("infold_rollovers", "Rollovers made.", registry=r)
        self.turns = Counter(
            "infold_turns", "Turns by where they are safe: committed, spooled, unrecorded.", ["kept"], registry=r
        )
        self.passed_through = Counter(
            "infold_passed_through", "Requests forwarded without memory, by reason.", ["reason"], registry=r
        )
        self.ignored_sessions = Counter(
            "infold_ignored_session_ids", "X-Session-Id headers that were malformed.", registry=r
        )
        self.prepare = Histogram(
            "infold_prepare_seconds", "Seconds spent before forwarding.", buckets=SECONDS, registry=r
        )
        self.record = Histogram("infold_record_seconds", "Seconds until a turn was safe.", buckets=SECONDS, registry=r)
        self.rest = Counter(
            "infold_rest_requests", "Requests to /memory-manager, by status class.", ["endpoint", "status"], registry=r
        )
        self.database = Gauge("infold_database_available", "1 while the database answers.", registry=r)
        self.spooled = Gauge("infold_spooled_turns", "Turns that wait on disk for the database.", registry=r)
        self.jobs = Gauge("infold_jobs_pending", "Background jobs that wait or run.", registry=r)

    def render(self) -> bytes:
        return generate_latest(self.registry)
