"""Where requests may go, as the settings say it: `upstreams:` in proxy.yaml, and what can be wrong there."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from yarl import URL

from memory.models import installed_price_map

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"

# Providers that are found by the model's name alone, and where their keys usually are.
PROVIDER_KEYS = {
    "anthropic": "ANTHROPIC_API_KEY",
    "cerebras": "CEREBRAS_API_KEY",
    "cohere": "COHERE_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "fireworks_ai": "FIREWORKS_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "groq": "GROQ_API_KEY",
    "mistral": "MISTRAL_API_KEY",
    "openai": "OPENAI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "perplexity": "PERPLEXITYAI_API_KEY",
    "together_ai": "TOGETHERAI_API_KEY",
    "xai": "XAI_API_KEY",
}
RESERVED = "default"  # beginnings of names that logs and metrics use themselves
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
WILD = frozenset("*?[")
SECRET = re.compile(r"key|secret|token|password|credential", re.IGNORECASE)

KeyHeader = Literal["authorization", "x-api-key", "api-key"]


class UpstreamSection(BaseModel):
    """One upstream beside the default one, and the models that are found there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        None,
        description="base URL; a path in it replaces the client's leading `/v1`, and a query joins the client's. "
        "With `provider`: that provider's address, where it is not the usual one",
    )
    provider: str | None = Field(
        None, description="litellm's name of a provider that speaks another dialect; requests are translated"
    )
    models: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="the names that clients use; `*` stands for anything. Needed"
    )
    model: str | None = Field(None, description="the name that the upstream gets instead of the client's")
    api_key_env: str | None = Field(
        None,
        description="variable with the key that this upstream gets instead of whatever the client sent. "
        "Whoever reaches the proxy spends it. Without: the client's own key",
    )
    key_header: KeyHeader | None = Field(
        None,
        description="where that key goes: `authorization` (as Bearer), `x-api-key` or `api-key`. Without: "
        "`x-api-key` for Messages, else `api-key` for Azure, else `authorization`",
    )
    fallback: str | None = Field(
        None,
        description="`upstream/model` or `provider/model`, asked once when this one cannot be reached or answers 429 "
        "or 5xx; never with the client's key",
    )
    trainable_outputs: bool = Field(
        False,
        description="whether its answers may train other models, by its terms; else no model of ours learns from them",
    )
    options: Mapping[str, Any] = Field({}, description="settings for litellm, such as `aws_region_name`")
    options_env: Mapping[str, str] = Field(
        {}, description="such settings that are secret, and the variables they are in; the client's key stays here"
    )

    @field_validator("url")
    @classmethod
    def is_url(cls, value: str | None) -> str | None:
        return checked_url(value)

    @field_validator("fallback")
    @classmethod
    def is_target(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition("/")):
            raise ValueError("must be <upstream>/<model> or <provider>/<model>")
        return value

    @property
    def variables(self) -> list[str]:
        """The environment that it needs."""
        return [*([self.api_key_env] if self.api_key_env else []), *self.options_env.values()]


def checked_url(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        url = URL(value)
    except ValueError:
        raise ValueError("must be a URL such as https://host/v1") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must be a URL that begins with http:// or https://")
    if url.user or url.password or url.raw_fragment:
        raise ValueError("must be a URL without user, password and fragment; a key goes into api_key_env")
    return value.rstrip("/")


def problems(sections: Mapping[str, UpstreamSection], known: Mapping[str, str]) -> Iterator[str]:
    """What is wrong beyond single values, each with its fix. `known`: the environment."""
    claimed: dict[str, str] = {}
    for name, section in sections.items():
        field = f"upstreams.{name}"
        if not NAME.fullmatch(name) or name.startswith(RESERVED):
            yield f"{field} must have a name of a-z, 0-9, - and _ that does not begin with `{RESERVED}`"
        if section.url is None and section.provider is None:
            yield f"{field} needs `url` (it is asked directly) or `provider` (litellm translates)"
        for model in section.models:
            if not WILD & set(model) and claimed.setdefault(model, name) != name:
                yield f"{field}.models: upstreams.{claimed[model]} has {model!r}, too; take it out of one of them"
        yield from missing(field, section, known)
        yield from misplaced(field, section)
        if section.fallback is not None:
            yield from wrong_fallback(f"{field}.fallback", name, section.fallback, sections, known)


def missing(field: str, section: UpstreamSection, known: Mapping[str, str]) -> Iterator[str]:
    if section.api_key_env is not None and section.api_key_env not in known:
        yield (
            f"{field}.api_key_env: {section.api_key_env} is not in the environment; set it, or take the line away "
            "and clients' own keys go there"
        )
    for option, variable in section.options_env.items():
        if variable not in known:
            yield f"{field}.options_env.{option}: {variable} is not in the environment; set it"


def misplaced(field: str, section: UpstreamSection) -> Iterator[str]:
    """Keys that say nothing here, and secrets in the file."""
    if section.key_header is not None and section.api_key_env is None:
        yield f"{field}.key_header says where the key of `api_key_env` goes; set that, too"
    if section.provider is None:
        if section.options or section.options_env:
            yield f"{field}.options are for litellm; set `provider`, too"
        return
    if section.key_header is not None:
        yield f"{field}.key_header: with `provider` the header is litellm's to choose; take the line away"
    providers = known_providers()
    if section.provider not in providers:
        near = difflib.get_close_matches(section.provider, providers, n=1, cutoff=0.5)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        yield f"{field}.provider: litellm knows no provider {section.provider!r}{meant}"
    for option in (option for option in section.options if SECRET.search(option)):
        yield f"{field}.options.{option} may be a secret; name its variable in options_env instead"


def wrong_fallback(
    field: str, name: str, target: str, sections: Mapping[str, UpstreamSection], known: Mapping[str, str]
) -> Iterator[str]:
    where, _, _ = target.partition("/")
    if where == name:
        yield f"{field}: {target!r} is the same upstream again; name another"
    elif where in sections:
        return
    elif where not in PROVIDER_KEYS:
        near = difflib.get_close_matches(where, [*sections, *PROVIDER_KEYS], n=1, cutoff=0.5)
        meant = f"; did you mean `{near[0]}`?" if near else ""
        yield f"{field}: {where!r} is neither one of `upstreams` nor a provider with a key of its own{meant}"
    elif PROVIDER_KEYS[where] not in known:
        yield f"{field}: {where!r} needs {PROVIDER_KEYS[where]} in the environment; set it"


def known_providers() -> set[str]:
    """litellm's names of providers: it has a folder for each. litellm itself is not imported."""
    price_map = installed_price_map()
    folder = price_map.parent / "llms" if price_map is not None else None
    if folder is None or not folder.is_dir():
        return set(PROVIDER_KEYS)
    return {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("_")}


def wanted_variables(sections: Mapping[str, UpstreamSection]) -> set[str]:
    """The variables that upstreams may need; nothing else of the environment is kept."""
    return {*PROVIDER_KEYS.values(), *(name for section in sections.values() for name in section.variables)}
