"""The table of models as programs see it, and the JSON file that changes it and the memory's settings."""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from memory import check
from memory.errors import InvalidRequest
from memory.models import DATE, NAME_CHARS, ModelOverride, ModelTable, name_forms
from memory.nouns import CompressionStrategy
from memory.settings import Settings, Strategies
from memory.types import Model

# What `infold models` prints: these, the operator's own, and those of the price map that the pattern finds.
SHOWN = """
    gpt-4 gpt-4-32k gpt-4-turbo gpt-4o gpt-4o-mini gpt-4.1 gpt-4.1-mini gpt-4.1-nano gpt-3.5-turbo gpt-3.5-turbo-16k
    gpt-5 gpt-5-mini gpt-5-nano o1 o1-mini o1-preview o1-pro o3 o3-mini o3-pro o4-mini
    claude-3-haiku claude-3-sonnet claude-3-opus claude-3-5-haiku claude-3-5-sonnet claude-3-7-sonnet
    claude-sonnet-4 claude-opus-4 claude-opus-4-1 claude-sonnet-4-5 claude-haiku-4-5 claude-opus-4-5
    gemini-1.0-pro gemini-1.5-pro gemini-1.5-flash gemini-2.0-flash gemini-2.5-pro gemini-2.5-flash
    gemma-3-4b phi-2 mistral-7b
""".split()
FAMILY = re.compile(r"(?:claude-|gpt-5|o\d|gemini-\d)[a-z0-9.-]*")
UNDATED = re.compile(r"(?!.*(?:-\d{4}-\d\d|-\d{8}|@|:|-tts|-preview|-exp|robotics|computer-use|image|audio|live))")


@dataclass(frozen=True, slots=True, eq=False)
class ModelConfig(Mapping[str, float]):
    """What is known of a model; the fields are also the keys of a mapping."""

    context_length: int  # tokens
    compression_trigger: float  # share of the window
    safe_threshold: float  # share of the window
    max_tokens: int  # of one answer
    cost_per_1k_input: float  # US dollars; 0 where nobody names a price
    cost_per_1k_output: float

    def __getitem__(self, key: str) -> float:
        if key not in MODEL_KEYS:
            raise KeyError(key)
        value: float = getattr(self, key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(MODEL_KEYS)

    def __len__(self) -> int:
        return len(MODEL_KEYS)


MODEL_KEYS = tuple(field.name for field in fields(ModelConfig))


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a `config_path` file says."""

    models: Mapping[str, ModelOverride]
    settings: Settings
    quarantine: bool = True  # may content be put into quarantine at all?


def known_models(table: ModelTable) -> list[str]:
    found = [name for name in table.names() if FAMILY.fullmatch(name) and UNDATED.match(name)]
    own = [name for name in table.names() if table.is_own(name)]
    return list(dict.fromkeys([*own, *SHOWN, *found]))


def known_name(name: str, known: Collection[str]) -> str | None:
    """Which of the known models a name means, without its provider and its date; None: none of them."""
    if len(name) > NAME_CHARS:
        return None
    forms = name_forms(name, "")
    return next((form for form in (*forms, *(DATE.sub("", form) for form in forms)) if form in known), None)


def model_config(name: str, table: ModelTable) -> ModelConfig:
    """What the table says of a model.

    Raises:
        InvalidRequest: nobody knows the model's window; the message lists the known ones.
    """
    model = table.find(check.text(name, "model_name"))
    if model.window is None:
        raise InvalidRequest(unknown_model(name, known_models(table)), "model_name")
    return config_of(model, model.window)


def config_of(model: Model, window: int) -> ModelConfig:
    prices = model.prices
    return ModelConfig(
        context_length=window,
        compression_trigger=model.trigger_share,
        safe_threshold=model.safe_share,
        max_tokens=model.max_output_tokens or min(window, max(1_024, window // 8)),
        cost_per_1k_input=round(prices.input * 1_000, 9) if prices else 0.0,
        cost_per_1k_output=round(prices.output * 1_000, 9) if prices else 0.0,
    )


def unknown_model(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown model {check.shown(name)}{guess}; known are {', '.join(known)}; config_path may name others"


# The file.

SECTIONS = ("models", "compression_strategies", "memory_management")
MANAGEMENT = ("max_compressed_items", "auto_prune_after_days", "context_quarantine_enabled", "chat_hygiene_interval")
STRATEGY = ("target_ratio", "description")


def read_config(path: Path, settings: Settings) -> ConfigFile:
    """The models and settings of a JSON file; what it does not name stays as in `settings`.

    Raises:
        InvalidRequest: it cannot be read, or a key or value is wrong; the message names it and what is allowed.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"cannot read config_path {path}: {error.strerror}", "config_path") from error
    except ValueError as error:
        raise InvalidRequest(f"config_path {path} is no JSON: {error}", "config_path") from error
    section = keyed(content, "config_path", SECTIONS)
    models = keyed(section.get("models", {}), "models")
    shares = keyed(section.get("compression_strategies", {}), "compression_strategies", tuple(CompressionStrategy))
    settings = replace(settings, strategies=with_shares(settings.strategies, shares))
    management = keyed(section.get("memory_management", {}), "memory_management", MANAGEMENT)
    table = ModelTable()
    return with_management(
        management, {name: override_of(name, said, table) for name, said in models.items()}, settings
    )


def keyed(value: object, where: str, known: Sequence[str] = ()) -> dict[str, Any]:
    """An object of JSON, none of its keys but the known ones; without any known, all are."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object, got {check.kind(value)}", where)
    for key in value:
        if known and key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            guess = f" (did you mean {near[0]}?)" if near else ""
            raise InvalidRequest(
                f"unknown key {check.shown(key)} in {where}{guess}; it takes {', '.join(known)}", where
            )
    return value


def with_shares(strategies: Strategies, section: Mapping[str, Any]) -> Strategies:
    """A strategy is its share, or an object that names it `target_ratio`."""
    for name, said in section.items():
        where = f"compression_strategies.{name}"
        if isinstance(said, dict):
            said, where = keyed(said, where, STRATEGY).get("target_ratio"), f"{where}.target_ratio"
        strategies = replace(strategies, **{name: check.number(said, where, 0.01, 1)})  # type: ignore[arg-type]
    return strategies


def override_of(name: str, value: object, table: ModelTable) -> ModelOverride:
    where = f"models.{name}"
    said, base = keyed(value, where, MODEL_KEYS), table.find(name)

    def number(key: str, low: float, high: float) -> float | None:
        return check.number(said[key], f"{where}.{key}", low, high) if key in said else None

    def tokens(key: str) -> int | None:
        return check.integer(said[key], f"{where}.{key}", 256, 10**9) if key in said else None

    if base.window is None and "context_length" not in said:
        raise InvalidRequest(f"{where}.context_length is missing, and nobody knows this model", where)
    cost, answer = number("cost_per_1k_input", 0, 1_000), number("cost_per_1k_output", 0, 1_000)
    if cost is None and answer is not None and base.prices is None:
        cost = 0.0
    return ModelOverride(
        context_window=tokens("context_length"),
        max_output_tokens=tokens("max_tokens"),
        input_usd_per_million=None if cost is None else cost * 1_000,
        output_usd_per_million=None if answer is None else answer * 1_000,
        trigger_share=number("compression_trigger", 0.05, 1),
        safe_share=number("safe_threshold", 0.05, 1),
    )


def with_management(section: Mapping[str, Any], models: Mapping[str, ModelOverride], settings: Settings) -> ConfigFile:
    def given(key: str, high: int, otherwise: int) -> int:
        return check.integer(section[key], f"memory_management.{key}", 0, high) if key in section else otherwise

    hygiene, days = settings.hygiene, section.get("auto_prune_after_days")
    if days is not None:
        days = check.number(days, "memory_management.auto_prune_after_days", 0, 36_500)
    hygiene = replace(
        hygiene,
        max_compressed_items=given("max_compressed_items", 10**9, hygiene.max_compressed_items),
        every_items=given("chat_hygiene_interval", 10**9, hygiene.every_items),
        archive_after_days=hygiene.archive_after_days if days is None else days,
    )
    flag = section.get("context_quarantine_enabled", True)
    allowed = check.flag(flag, "memory_management.context_quarantine_enabled")
    quarantine = settings.quarantine if allowed else "off"
    return ConfigFile(models, replace(settings, hygiene=hygiene, quarantine=quarantine), allowed)


def in_effect(file: ConfigFile, table: ModelTable) -> dict[str, Any]:
    """The settings as a `config_path` file would say them; of models those that it names."""
    strategies: Strategies = file.settings.strategies
    hygiene = file.settings.hygiene
    return {
        "models": {name: dict(model_config(name, table)) for name in file.models},
        "compression_strategies": {name.value: getattr(strategies, name.value) for name in CompressionStrategy},
        "memory_management": {
            "max_compressed_items": hygiene.max_compressed_items,
            "auto_prune_after_days": hygiene.archive_after_days,
            "context_quarantine_enabled": file.quarantine,
            "chat_hygiene_interval": hygiene.every_items,
        },
    }
