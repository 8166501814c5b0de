"""Which upstream a request goes to, under which model's name, and as whom.

The client's own credentials go to the default upstream, and to one of `upstreams:` that has no key of its own. An
upstream with a key of its own gets that and nothing of the client's; nobody else ever sees it.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import orjson
from msgspec.structs import replace
from pydantic import SecretStr

from memory.messages import ChatRequest
from proxy.config import Config
from proxy.destinations import ANTHROPIC_URL, OPENAI_URL, PROVIDER_KEYS, UpstreamSection
from proxy.exchange import Exchange, Headers
from proxy.tenants import KEY_HEADERS, key_of
from proxy.upstream import Upstream, names_in
from proxy.wire.content import NOT_JSON
from proxy.wire.dialects import Dialect
from proxy.wire.slices import looking, members

# Headers and parameters by which somebody may be known; idempotency keys name a request, not a person.
PERSONAL = re.compile(
    rb"(?<!idempotency-)key|auth|token|secret|cookie|credential|jwt|account|forwarded|^openai-(?:organization|project)$"
)
PROVIDERS_URL = "http://providers"  # what our own process that runs litellm is called
NATIVE = {  # providers whose own dialect some clients speak: those are asked directly
    ("openai", "chat"): OPENAI_URL,
    ("openai", "responses"): OPENAI_URL,
    ("anthropic", "messages"): ANTHROPIC_URL,
}
LOCAL_PAGES = frozenset(("localhost", "127.0.0.1", "::1"))
REFUSING = frozenset((429, *range(500, 600)))  # statuses for which a fallback is there


class Question(msgspec.Struct, frozen=True):
    """What a client sent."""

    body: bytes  # as it came, or with another name of the model
    text: bytes | None  # decoded
    asked: ChatRequest | None  # as we understand it

    @property
    def model(self) -> str:
        """The model's name, also where all else is not understood; "" for none."""
        if self.asked is not None:
            return self.asked.model
        try:
            start, stop = self._span
            return msgspec.json.decode((self.text or b"")[start:stop], type=str)
        except (*NOT_JSON, KeyError):
            return ""

    @property
    def _span(self) -> tuple[int, int]:
        """Where the model's name stands. KeyError or one of NOT_JSON: nowhere, or not in one place."""
        return members(looking(self.text or b""))["model"]

    @property
    def decoded(self) -> "Question":
        """The same with a body that is not encoded, for whoever gets no content encoding with it."""
        return self if self.text is None else replace(self, body=self.text)

    def renamed(self, model: str) -> "Question":
        """The same for another model: only the bytes of that value change. Itself where it names none."""
        if self.text is None or model == self.model:
            return self
        try:
            start, stop = self._span
        except (*NOT_JSON, KeyError):
            return self
        text = self.text[:start] + orjson.dumps(model) + self.text[stop:]
        asked = self.asked
        if asked is not None:
            shift = len(text) - len(self.text) if start < asked.span[0] else 0
            span = (asked.span[0] + shift, asked.span[1] + shift)
            asked = replace(asked, model=model, body=text, span=span)
        return Question(text, text, asked)


class Way(msgspec.Struct, frozen=True):
    """Where a request goes and what goes there."""

    name: str  # of the upstream, for logs and metrics
    upstream: Upstream
    question: Question  # under the name of the model that this upstream knows
    headers: Headers
    query: bytes
    fallback: str | None = None  # where it goes when this upstream refuses
    instead: str | None = None  # this way is such a fallback


class Destination(NamedTuple):
    """An upstream, and as whom it is asked."""

    name: str
    url: str | None
    provider: str | None = None
    models: tuple[str, ...] = ()
    model: str | None = None
    key: SecretStr | None = None
    key_header: str | None = None
    options: Mapping[str, object] = {}
    takes_client: bool = True  # the client's credentials go there while it has no key of its own
    lends: SecretStr | None = None  # a key for clients without one
    fallback: str | None = None

    def without_keys(self) -> "Destination":
        """The same on nobody's account: what is the operator's stays here, and the client's goes where it went."""
        takes_client = self.takes_client and self.key is None
        options = self.options if self.takes_client else {}
        return self._replace(key=None, lends=None, options=options, takes_client=takes_client)


class Upstreams:
    """All upstreams of a process. Belongs to one event loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open: dict[tuple[str, bool], Upstream] = {}
        lends = config.openai_api_key if config.is_loopback else None
        self._default = Destination("default", config.upstream, lends=lends)
        messages = config.messages_upstream
        same = messages == config.upstream
        self._messages = self._default if same else Destination("default-messages", messages)
        self._named = {name: self._from(name, section) for name, section in config.upstreams.items()}
        self._free = {name: Destination(name, None, name, key=key) for name, key in config.free_providers.items()}

    def _from(self, name: str, section: UpstreamSection) -> Destination:
        secret = {option: self._config.secret(variable) for option, variable in section.options_env.items()}
        shown = {option: value.get_secret_value() for option, value in secret.items() if value is not None}
        return Destination(
            name,
            section.url,
            section.provider,
            section.models,
            section.model,
            self._config.secret(section.api_key_env),
            section.key_header,
            {**section.options, **shown},
            takes_client=not section.options_env,
            fallback=section.fallback,
        )

    @property
    def default(self) -> Upstream:
        """Where requests go that nothing else claims."""
        return self._upstream(self._config.upstream, False)

    @property
    def spendable(self) -> list[str]:
        """Names of upstreams on whose keys everybody lives who reaches the proxy."""
        return [name for name, one in self._named.items() if one.key is not None or not one.takes_client]

    async def close(self) -> None:
        for upstream in self._open.values():
            await upstream.close()

    # The three ways.

    def unmanaged(self, exchange: Exchange) -> Way:
        """For endpoints that nobody looks into: by the path alone."""
        there = self._messages if is_messages(exchange.path) else self._default
        return self._way(there, exchange, Question(b"", None, None), None)

    def managed(self, exchange: Exchange, question: Question, dialect: Dialect) -> Way:
        """By the model: the first of `upstreams:` that claims it, else a provider named before a slash, else the
        default one."""
        model = question.model
        return self._way(self._claims(model, dialect), exchange, question, dialect)

    def instead(self, way: Way, exchange: Exchange, question: Question, dialect: Dialect) -> Way | None:
        """The way of a fallback, with a key of its own or none; it has no fallback itself.

        Args:
            question: as the client asked it.
        """
        if way.fallback is None or question.asked is None:
            return None
        where, _, model = way.fallback.partition("/")
        found = self._named.get(where)
        if found is None:
            found = Destination(where, None, where, key=self._config.secret(PROVIDER_KEYS.get(where)))
        there = found._replace(model=model, takes_client=False, fallback=None)
        return msgspec.structs.replace(self._way(there, exchange, question, dialect), instead=way.fallback)

    def _claims(self, model: str, dialect: Dialect) -> Destination:
        for one in self._named.values():
            if any(fnmatchcase(model, pattern) for pattern in one.models):
                return one
        is_messages = dialect.errors == "anthropic"
        provider, slash, _ = model.partition("/")
        if slash and provider in self._free and not (is_messages and self._config.anthropic_upstream):
            return self._free[provider]
        return self._messages if is_messages else self._default

    def _way(self, there: Destination, exchange: Exchange, question: Question, dialect: Dialect | None) -> Way:
        spoken = dialect.shape.dialect if dialect is not None else ""
        native = NATIVE.get((there.provider or "", spoken))
        model = there.model or question.model
        if native is not None:
            model = model.removeprefix(f"{there.provider}/")
        asked = question.renamed(model)
        if self._config.is_loopback and is_from_elsewhere(exchange.headers):
            there = there.without_keys()
        if there.provider is not None and native is None:
            return Way(there.name, self._translated, asked.decoded, translated(there, exchange), b"", there.fallback)
        owned = there.key is not None or not there.takes_client
        headers, query = exchange.headers, exchange.query
        if asked is not question:
            headers = [pair for pair in headers if pair[0] != b"content-encoding"]
        if owned:
            headers, query = [*impersonal(headers), *own_key(there, dialect)], impersonal_query(query)
        elif there.lends is not None and not any(name in KEY_HEADERS for name, _ in headers):
            headers = [*headers, (b"authorization", b"Bearer " + shown(there.lends))]
        url = there.url or native or self._config.upstream
        return Way(there.name, self._upstream(url, owned), asked, headers, query, there.fallback)

    @property
    def _translated(self) -> Upstream:
        return self._upstream(PROVIDERS_URL, True)

    def _upstream(self, url: str, owned: bool) -> Upstream:
        """Connections to a place; cookies that are set for the operator's key do not reach clients."""
        found = self._open.get((url, owned))
        if found is None:
            path = self._config.providers_socket if url == PROVIDERS_URL else None
            found = self._open[url, owned] = Upstream(
                url,
                silence_timeout_seconds=self._config.silence_timeout_seconds,
                socket_path=str(path) if path is not None else None,
                sets_cookies=not owned,
            )
        return found


def is_messages(path: bytes) -> bool:
    """Is this one of Anthropic's own paths?"""
    return path == b"/v1/messages" or path.startswith(b"/v1/messages/")


def translated(there: Destination, exchange: Exchange) -> Headers:
    """What our own process needs to ask a provider: nothing of the client's but perhaps its key."""
    own = there.key.get_secret_value() if there.key is not None else None
    key = own or (key_of(exchange.headers) if there.takes_client else None)
    options = {**({"api_base": there.url} if there.url else {}), **there.options}
    headers = [
        (b"content-type", b"application/json"),
        (b"infold-provider", str(there.provider).encode()),
        (b"infold-options", orjson.dumps(options)),
    ]
    return [*headers, (b"authorization", b"Bearer " + key.encode("latin-1"))] if key else headers


def own_key(there: Destination, dialect: Dialect | None) -> Headers:
    """The upstream's key in the header that it reads."""
    if there.key is None:
        return []
    header = there.key_header
    if header is None and dialect is not None and dialect.errors == "anthropic":
        header = "x-api-key"
    if header is None and ".azure." in (there.url or ""):
        header = "api-key"
    if header in (None, "authorization"):
        return [(b"authorization", b"Bearer " + shown(there.key))]
    return [(str(header).encode(), shown(there.key))]


def is_from_elsewhere(headers: Headers) -> bool:
    """Whether a web page from elsewhere asks a proxy that listens to its own machine alone.

    Browsers let any page send requests to this machine, and open WebSockets; they tell the page's origin, or, where its
    name was made to point here (DNS rebinding), that name as the host. On such a page's behalf no key of the operator's
    is spent.
    """
    told = {name: value.decode("latin-1") for name, value in headers if name in (b"origin", b"host")}
    page = b"origin" in told and hostname(told[b"origin"]) not in LOCAL_PAGES
    return page or not is_local_name(hostname(f"//{told[b'host']}") if b"host" in told else None)


def is_local_name(name: str | None) -> bool:
    """A name of this machine, or an address: those cannot be made to point elsewhere."""
    if name is None or name in LOCAL_PAGES or "." not in name:
        return True
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def hostname(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None


def shown(secret: SecretStr) -> bytes:
    return secret.get_secret_value().encode()


def impersonal(headers: Headers) -> Headers:
    """Headers without those that tell who asks."""
    return [pair for pair in headers if not PERSONAL.search(pair[0])]


def impersonal_query(query: bytes) -> bytes:
    return b"&".join(part for part in query.split(b"&") if not any(map(PERSONAL.search, names_in(part))))
