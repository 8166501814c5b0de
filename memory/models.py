"""What we know of models: windows, encodings and prices.

The table reads the price map inside the litellm wheel as data; litellm itself is not imported. What the
operator wrote (`models:` in proxy.yaml) wins over it, and so does a window that the provider told us.
A model whose window nobody knows has `window` None, and its requests are a wire.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from memory.types import Model, Prices

K = TypeVar("K")
V = TypeVar("V")

PRICE_MAP = "model_prices_and_context_window_backup.json"
CHAT_MODES = (None, "chat", "completion", "responses")
LEARN_SECONDS = 3_600.0  # a provider is asked again after this
MOST_NAMES = 4_096  # names found, asked for and learned, each: clients invent them
NAME_CHARS = 256  # a longer name is nobody's
LEAST_WINDOW = 256  # tokens; less is a number misread

# Decide where prices are unknown, or nothing costs anything; never printed as dollars.
RELATIVE_PRICES = Prices(input=1.0, cached=0.5, write=1.0, output=4.0)


@dataclass(frozen=True, slots=True)
class ModelOverride:
    """What an operator says of a model; None leaves a thing as it is known."""

    context_window: int | None = None  # tokens
    max_output_tokens: int | None = None
    separate_output: bool | None = None  # the window is for input alone
    encoding: str | None = None  # "cl100k_base", "o200k_base", or the path of the model's own tokenizer.json
    input_usd_per_million: float | None = None
    cached_usd_per_million: float | None = None
    write_usd_per_million: float | None = None
    output_usd_per_million: float | None = None
    cache_seconds: float | None = None  # how long a cached prefix lives unused
    trigger_share: float | None = None  # of the window, for stored items
    safe_share: float | None = None  # of the window, for a working context


class Row(msgspec.Struct, frozen=True, gc=False):
    """What we read of one entry of the price map, US dollars a token; now and then a text stands for a number."""

    mode: object = None
    max_input_tokens: object = None
    max_output_tokens: object = None
    max_tokens: object = None
    input_cost_per_token: object = None
    output_cost_per_token: object = None
    cache_read_input_token_cost: object = None
    cache_creation_input_token_cost: object = None


NO_OVERRIDES: Mapping[str, ModelOverride] = MappingProxyType({})


class ModelTable:
    """Finds models by the names that clients use. One per process, used from its event loop."""

    def __init__(
        self,
        overrides: Mapping[str, ModelOverride] = NO_OVERRIDES,
        now: Callable[[], float] = time.monotonic,
        price_map: Path | None = None,
    ) -> None:
        self._overrides = {name.lower(): override for name, override in overrides.items()}
        self._now = now
        self._price_map = price_map  # None: the one in the litellm wheel
        self._rows: dict[str, Row] | None = None  # read at the first look-up
        self._found: dict[tuple[str, str], Model] = {}
        self._learned: dict[tuple[str, str], int] = {}
        self._asked: dict[tuple[str, str], float] = {}

    def find(self, name: str, upstream: str = "") -> Model:
        """What is known of a model. Never raises.

        Accepts fine-tuned ("ft:gpt-4o:acme::a1") and dated names ("gpt-4o-2024-08-06") and names behind a
        provider ("openai/gpt-4o"). `upstream` is a URL: of several providers' entries its host picks one.
        The operator's window wins, then the provider's own word, then the price map.
        """
        if len(name) > NAME_CHARS:
            return Model(name=name, window=None)
        key = (name, upstream)
        model = self._found.get(key)
        if model is None:
            model = self._resolve(name, upstream)
            remember(self._found, key, model)
        window = self._learned.get(key)
        return model if window is None else self._taught(model, window, upstream)

    def names(self) -> list[str]:
        """The operator's models, and those of the price map whose window it states; no provider stands before them."""
        if self._rows is None:
            self._rows = read_price_map(self._price_map or installed_price_map())
        mapped = [name for name, row in self._rows.items() if window_of(row)]
        return [*self._overrides, *(name for name in mapped if "/" not in name and name not in self._overrides)]

    def is_own(self, name: str) -> bool:
        """Whether the operator named it."""
        return name.lower() in self._overrides

    def learn(self, name: str, upstream: str, window: int) -> None:
        """Keep a window that the provider named, from its list of models or from its error."""
        if window >= LEAST_WINDOW and len(name) <= NAME_CHARS:
            remember(self._learned, (name, upstream), window)
            remember(self._asked, (name, upstream), self._now())

    def wants_learning(self, name: str, upstream: str) -> bool:
        """Whether to ask the provider for the window now; True at most once an hour for a model.

        Who reads True asks; others meanwhile read False. After an hour a learned window is asked for again
        and serves on until the answer is there: a long conversation must not lose its window in between.
        """
        key, now = (name, upstream), self._now()
        asked = self._asked.get(key)
        if len(name) > NAME_CHARS or (asked is not None and now - asked < LEARN_SECONDS):
            return False
        if key not in self._learned and self.find(name, upstream).window is not None:
            return False
        remember(self._asked, key, now)
        return True

    def _resolve(self, name: str, upstream: str) -> Model:
        if self._rows is None:
            self._rows = read_price_map(self._price_map or installed_price_map())
        forms = name_forms(name, upstream)
        model = Model(name=name, window=None, encoding=encoding_of(forms))
        if row := best_row(forms, self._rows):
            model = with_row(model, row)
        elif known := built_in(forms):
            model = with_override(model, known)
        elif row := best_row([DATE.sub("", form) for form in forms], self._rows):
            model = with_row(model, row)
        override = self._override(forms)
        return model if override is None else with_override(model, override)

    def _override(self, forms: Sequence[str]) -> ModelOverride | None:
        undated = (DATE.sub("", form) for form in forms)
        return next((self._overrides[form] for form in chain(forms, undated) if form in self._overrides), None)

    def _taught(self, model: Model, window: int, upstream: str) -> Model:
        """The model with a window the provider named, unless we know better."""
        override = self._override(name_forms(model.name, upstream)) if self._overrides else None
        if override is not None and override.context_window is not None:
            return model
        if model.separate_output and model.window is not None and window > model.window:
            return model  # gateways add the output's limit to the window of such models
        return replace(model, window=window)


def remember(names: dict[K, V], key: K, value: V) -> None:
    """Put a value last; the oldest goes when there are too many."""
    names.pop(key, None)
    if len(names) >= MOST_NAMES:
        del names[next(iter(names))]
    names[key] = value


# Names. The price map has "groq/openai/gpt-oss-20b" where a client of api.groq.com says "openai/gpt-oss-20b".

PROVIDERS = {
    "api.cerebras.ai": "cerebras",
    "api.deepseek.com": "deepseek",
    "api.fireworks.ai": "fireworks_ai",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.together.xyz": "together_ai",
    "api.x.ai": "xai",
    "generativelanguage.googleapis.com": "gemini",
}

DATE = re.compile(r"(?:-\d{4}-\d{2}-\d{2}|-\d{8}|@\d{8}|-\d{4}|-latest)$")
VARIANT = re.compile(r":(?:free|nitro|floor|online|exacto)$")  # OpenRouter's ways to route one model

# Everything else is counted with cl100k_base: exact for GPT-4 and GPT-3.5, an estimate for other makers'
# models, and higher than o200k_base. Source: tiktoken 0.14, model.py; gpt-oss has o200k_base's merges.
O200K = re.compile(
    r"(?:^|[-./:])(?:gpt-4o|gpt-4\.[15]|gpt-5|gpt-oss|gpt-audio|chatgpt-4o|codex-mini)|(?:^|[./:])o[134](?:-|$)"
)


def name_forms(name: str, upstream: str = "") -> list[str]:
    """The names under which a model may be known, the most exact first.

    >>> name_forms("openai/gpt-oss-20b", "https://api.groq.com/openai/v1")
    ['groq/openai/gpt-oss-20b', 'groq/gpt-oss-20b', 'openai/gpt-oss-20b', 'gpt-oss-20b']
    >>> name_forms("ft:gpt-4o-2024-08-06:acme::a1")
    ['ft:gpt-4o-2024-08-06', 'gpt-4o-2024-08-06']
    """
    form = VARIANT.sub("", name.strip().lower())
    forms = [form]
    while "/" in form:
        form = form.partition("/")[2]
        forms.append(form)
    forms = list(chain.from_iterable(map(fine_tuned_forms, forms)))
    provider = PROVIDERS.get(host_of(upstream))
    return [f"{provider}/{form}" for form in forms] + forms if provider else forms


def fine_tuned_forms(form: str) -> list[str]:
    if not form.startswith("ft:"):
        return [form]
    base = form.split(":")[1]
    return [f"ft:{base}", base]


def host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def encoding_of(forms: Sequence[str]) -> str:
    return "o200k_base" if O200K.search(forms[-1]) else "cl100k_base"


# The price map.

# Input limits of models whose output has a limit of its own. Source: OpenAI refuses GPT-5's 272,001st input
# token whatever `max_tokens` says ("Input tokens exceed the configured limit of 272000 tokens",
# community.openai.com/t/1344734): 400,000 in all less 128,000 of output. From GPT-5.6 on the price map states
# 922,000, which is 1,050,000 less 128,000.
SEPARATE_INPUT_TOKENS = frozenset({272_000, 922_000})
SEPARATE_OUTPUT_TOKENS = 128_000


def installed_price_map() -> Path | None:
    spec = find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / PRICE_MAP


def read_price_map(path: Path | None) -> dict[str, Row]:
    """The chat models of a price map, by lower-case name; empty where it cannot be read. Takes 10 ms and 2 MB."""
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=dict[str, Row]) if path else {}
    except (OSError, ValueError, msgspec.DecodeError):
        return {}
    return {name.lower(): row for name, row in rows.items() if row.mode in CHAT_MODES}


def best_row(forms: Sequence[str], rows: Mapping[str, Row]) -> Row | None:
    """The first row that states a window, else the first row."""
    found = [rows[form] for form in forms if form in rows]
    return next((row for row in found if window_of(row)), found[0] if found else None)


def window_of(row: Row) -> int | None:
    return tokens(row.max_input_tokens) or (None if tokens(row.max_output_tokens) else tokens(row.max_tokens))


def with_row(model: Model, row: Row) -> Model:
    window, output = window_of(row), tokens(row.max_output_tokens)
    return replace(
        model,
        window=window,
        max_output_tokens=output,
        separate_output=window in SEPARATE_INPUT_TOKENS and output == SEPARATE_OUTPUT_TOKENS,
        prices=row_prices(row),
    )


def row_prices(row: Row) -> Prices | None:
    """Prices of a row; None without an input price. No price, or a price of 0, for cached input or for
    writing to the cache means that of input: the map has 0 there for "not stated"."""
    price = dollars(row.input_cost_per_token)
    if price is None:
        return None
    output = dollars(row.output_cost_per_token)
    return Prices(
        input=price,
        cached=dollars(row.cache_read_input_token_cost) or price,
        write=dollars(row.cache_creation_input_token_cost) or price,
        output=price * RELATIVE_PRICES.output if output is None else output,
    )


def with_override(model: Model, override: ModelOverride) -> Model:
    return replace(
        model,
        window=override.context_window or model.window,
        max_output_tokens=override.max_output_tokens or model.max_output_tokens,
        separate_output=model.separate_output if override.separate_output is None else override.separate_output,
        encoding=override.encoding or model.encoding,
        prices=override_prices(model.prices, override),
        trigger_share=override.trigger_share or model.trigger_share,
        safe_share=override.safe_share or model.safe_share,
    )


def override_prices(prices: Prices | None, override: ModelOverride) -> Prices | None:
    """Prices with an operator's changes; a new price of input is that of cached input and writing, too,
    unless they are named. None while nobody named a price of input."""
    usd_per_million = {
        "input": override.input_usd_per_million,
        "cached": override.cached_usd_per_million,
        "write": override.write_usd_per_million,
        "output": override.output_usd_per_million,
    }
    said = {field: usd / 1_000_000 for field, usd in usd_per_million.items() if usd is not None}
    price = said.get("input")
    if price is not None:
        prices = Prices(price, price, price, output=prices.output if prices else price * RELATIVE_PRICES.output)
    if prices is None:
        return None
    seconds = prices.cache_seconds if override.cache_seconds is None else override.cache_seconds
    return replace(prices, **said, cache_seconds=seconds)


def tokens(value: object) -> int | None:
    return int(value) if isinstance(value, float | int) and 0 < value < 2**53 else None


def dollars(value: object) -> float | None:
    return float(value) if isinstance(value, float | int) and 0 <= value < 1e6 else None


# Names that the price map lost or has for other providers alone, by the beginning of the name.


def limits(window: int, output: int | None, *usd_per_million: float) -> ModelOverride:
    """Tokens of window and output; prices of input, cached input, cache write and output."""
    return ModelOverride(window, output, None, None, *usd_per_million)


BUILT_IN: Mapping[str, ModelOverride] = MappingProxyType(
    {
        # docs.claude.com, "Models overview" and "Pricing".
        "claude-3-haiku": limits(200_000, 4_096, 0.25, 0.03, 0.30, 1.25),
        "claude-3-sonnet": limits(200_000, 4_096, 3, 0.30, 3.75, 15),
        "claude-3-opus": limits(200_000, 4_096, 15, 1.50, 18.75, 75),
        "claude-3-5-haiku": limits(200_000, 8_192, 0.80, 0.08, 1, 4),
        "claude-3-5-sonnet": limits(200_000, 8_192, 3, 0.30, 3.75, 15),
        "claude-3-7-sonnet": limits(200_000, 64_000, 3, 0.30, 3.75, 15),
        "claude-sonnet-4": limits(200_000, 64_000, 3, 0.30, 3.75, 15),
        "claude-opus-4": limits(200_000, 32_000, 15, 1.50, 18.75, 75),
        # platform.openai.com/docs/models with its deprecated models, and its prices.
        "chatgpt-4o": limits(128_000, 16_384, 5, 5, 5, 15),
        "codex-mini": limits(200_000, 100_000, 1.50, 0.375, 1.50, 6),
        "gpt-3.5-turbo-0301": limits(4_096, 4_096, 1.50, 1.50, 1.50, 2),
        "gpt-3.5-turbo-0613": limits(4_096, 4_096, 1.50, 1.50, 1.50, 2),
        "gpt-4-0125-preview": limits(128_000, 4_096, 10, 10, 10, 30),
        "gpt-4-32k": limits(32_768, 4_096, 60, 60, 60, 120),
        "gpt-4-turbo": limits(128_000, 4_096, 10, 10, 10, 30),
        "gpt-4-vision-preview": limits(128_000, 4_096, 10, 10, 10, 30),
        "gpt-4.5-preview": limits(128_000, 16_384, 75, 37.50, 75, 150),
        "o1-mini": limits(128_000, 65_536, 1.10, 0.55, 1.10, 4.40),
        "o1-preview": limits(128_000, 32_768, 15, 7.50, 15, 60),
        # ai.google.dev/gemini-api/docs/models.
        "gemini-1.0-pro": limits(30_720, 2_048, 0.50, 0.50, 0.50, 1.50),
        "gemini-pro": limits(30_720, 2_048, 0.50, 0.50, 0.50, 1.50),
        "gemini-1.5-flash": limits(1_048_576, 8_192, 0.075, 0.01875, 0.075, 0.30),
        "gemini-1.5-pro": limits(2_097_152, 8_192, 1.25, 0.3125, 1.25, 5),
        "gemini-2.0-flash": limits(1_048_576, 8_192, 0.10, 0.025, 0.10, 0.40),
        # Open weights: model cards and config.json on huggingface.co. Prices are those of whoever serves them.
        "gemma-3": limits(131_072, None),
        "gemma-3-1b": limits(32_768, None),
        "gpt-oss": limits(131_072, None),
        "mistral-7b": limits(32_768, None),
        "mistral-7b-instruct-v0.1": limits(8_192, None),
        "mistral-7b-v0.1": limits(8_192, None),
        "phi-2": limits(2_048, None),
    }
)


def built_in(forms: Sequence[str]) -> ModelOverride | None:
    """The entry with the longest name that one of the forms begins with, up to the end of a word."""
    fits = [name for name in BUILT_IN if any(f"{form}-".startswith((f"{name}-", f"{name}@")) for form in forms)]
    return BUILT_IN[max(fits, key=len)] if fits else None
