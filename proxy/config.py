"""proxy.yaml and the environment -> one frozen Config. The only reader of the environment.

The environment wins over the file; secrets come from the environment alone. Every setting, its unit and a sentence
stand in `proxy.yaml` at the top of the repository.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import platformdirs
import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from memory.environment import ENV_FILE, HARMLESS, as_settings, for_engines, variables
from memory.errors import InvalidRequest
from memory.models import ModelOverride
from memory.nouns import MemoryApproach
from memory.settings import (
    EMBEDDERS,
    Compression,
    Hygiene,
    Learning,
    Recall,
    Settings,
    Slm,
    Summaries,
    Work,
    names_embedder,
)
from memory.tokens import ENCODINGS
from proxy.destinations import (
    ANTHROPIC_URL,
    OPENAI_URL,
    PROVIDER_KEYS,
    RESERVED,
    UpstreamSection,
    checked_url,
    problems,
    wanted_variables,
)
from proxy.sections import Section, SlmSection

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
LOCAL = "local"  # as `upstream`: the small model that runs here
LOCAL_UPSTREAM = ("local", "local-model", "local-engine")  # its name among the upstreams: the first that is free

Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """A setting is wrong; says which, and what it may be."""


class CompressionSection(Section):
    target: Annotated[float, Field(ge=0.05, le=0.5)] = Compression().target
    digest_share: Share = Compression().digest_share


class RecallSection(Section):
    max_share: Annotated[float, Field(ge=0, le=0.75)] = Recall().max_share
    floor: Share = Recall().floor


class HygieneSection(Section):
    schedule: str = Hygiene().schedule
    compress_after_days: Annotated[float, Field(ge=0)] = Hygiene().compress_after_days
    archive_after_days: Annotated[float, Field(ge=0)] = Hygiene().archive_after_days
    delete_after_days: Annotated[float, Field(gt=0)] | None = Hygiene().delete_after_days
    max_compressed_items: Annotated[int, Field(ge=0)] = Hygiene().max_compressed_items
    chat_hygiene_interval: Annotated[int, Field(ge=0)] = Hygiene().every_items

    @field_validator("schedule")
    @classmethod
    def is_cron(cls, value: str) -> str:
        if value and not re.fullmatch(r"\S+(?: \S+){4}", value):
            raise ValueError("must be a cron expression of five fields, or empty")
        return value


class RestSection(Section):
    anonymous: Literal["off", "loopback"] = "loopback"

    @field_validator("anonymous", mode="before")
    @classmethod
    def spelled(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` so


class ModelSection(Section):
    context_window: Annotated[int, Field(gt=0)] | None = None
    max_output_tokens: Annotated[int, Field(gt=0)] | None = None
    separate_output: bool | None = None
    encoding: str | None = None
    input_usd_per_million: Annotated[float, Field(ge=0)] | None = None
    cached_usd_per_million: Annotated[float, Field(ge=0)] | None = None
    write_usd_per_million: Annotated[float, Field(ge=0)] | None = None
    output_usd_per_million: Annotated[float, Field(ge=0)] | None = None
    cache_seconds: Annotated[float, Field(gt=0)] | None = None

    @field_validator("encoding")
    @classmethod
    def is_encoding(cls, value: str | None) -> str | None:
        if value is None or value in ENCODINGS or (value.endswith(".json") and Path(value).is_file()):
            return value
        raise ValueError(f"must be {', '.join(ENCODINGS)} or the path of the model's tokenizer.json")


class Named(EnvSettingsSource):
    """`.env`, and the names that people know from elsewhere: `DB_HOST`, `API_PORT`, `LOG_LEVEL`, ..."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        file = getattr(settings_cls, "names_file", None)
        known = as_settings(variables(file)) if file is not None else {}
        self.env_vars = {name.lower(): value for name, value in known.items()}


class Config(BaseSettings):
    """All settings, checked before anything starts."""

    model_config = SettingsConfigDict(
        env_prefix="INFOLD_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8808
    upstream: str = OPENAI_URL
    anthropic_upstream: str | None = None
    trainable_outputs: bool = False
    upstreams: Mapping[str, UpstreamSection] = {}
    data_dir: Path = Path(platformdirs.user_data_dir("infold"))
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    job_worker: bool = True
    max_body_mib: Annotated[int, Field(ge=1)] = 64
    silence_timeout_seconds: Annotated[float, Field(ge=1)] = 900
    drain_seconds: Annotated[float, Field(ge=0)] = 600
    embedder: str = "builtin"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    models: Mapping[str, ModelSection] = {}
    compression: CompressionSection = CompressionSection()
    recall: RecallSection = RecallSection()
    hygiene: HygieneSection = HygieneSection()
    recall_tool: Literal["off", "auto"] = Settings().recall_tool
    quarantine: Literal["off", "suggest", "auto"] = Settings().quarantine
    summarizer: Literal["digest", "upstream", "local"] = Settings().summaries.by
    human_expiry_hours: Annotated[float, Field(gt=0)] = Settings().work.human_expiry_hours
    rest: RestSection = RestSection()
    slm: SlmSection = SlmSection()
    primary_model: str = "gpt-4o"
    memory_approach: MemoryApproach = MemoryApproach.EXTERNAL_LLM
    use_slm: bool = False
    use_lora_finetuning: bool = False

    embed_socket: Path | None = None  # set by the parent process for its children: where the job worker embeds
    providers_socket: Path | None = None  # likewise: where litellm listens
    slm_name: str | None = None  # likewise: how the engine that was started calls its model
    supervised: bool = False  # likewise: somebody else runs the database and the job worker

    database_url: SecretStr | None = Field(
        None, validation_alias=AliasChoices("INFOLD_DATABASE_URL", "DATABASE_URL", "database_url")
    )
    openai_api_key: SecretStr | None = Field(None, validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key"))
    pepper: SecretStr | None = None
    slm_key: SecretStr | None = None

    _named: dict[str, SecretStr] = PrivateAttr(default_factory=dict)  # variables that upstreams may need

    def model_post_init(self, context: Any) -> None:
        known, wanted = variables(getattr(type(self), "names_file", None)), wanted_variables(self.upstreams)
        self._named.update((name, SecretStr(known[name])) for name in wanted if name in known)

    @field_validator("upstream")
    @classmethod
    def is_upstream(cls, value: str) -> str:
        if value == LOCAL:
            return value
        try:
            return checked_url(value) or value
        except ValueError as error:
            raise ValueError(f"{error}, or `{LOCAL}`") from None

    @field_validator("anthropic_upstream")
    @classmethod
    def is_url(cls, value: str | None) -> str | None:
        return checked_url(value)

    @field_validator("database_url")
    @classmethod
    def is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        url = value.get_secret_value() if value else ""
        if url and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must be a URL that begins with postgresql://")
        return value

    @field_validator("quarantine", "recall_tool", mode="before")
    @classmethod
    def spelled(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` so

    @field_validator("embedder")
    @classmethod
    def is_embedder(cls, value: str) -> str:
        if not names_embedder(value):
            raise ValueError(f"must be {EMBEDDERS}")
        return value

    @field_validator("data_dir")
    @classmethod
    def expanded(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line wins over the environment, that over `.env`, and all over the file."""
        return init_settings, env_settings, Named(settings_cls), YamlConfigSettingsSource(settings_cls)

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def models_home(self) -> Path:
        """Where the weights of local models lie."""
        return self.data_dir / "models"

    @property
    def adapters_home(self) -> Path:
        """Where what local models learned lies."""
        return self.data_dir / "adapters"

    @property
    def messages_upstream(self) -> str:
        """Where Anthropic's paths go that no entry of `upstreams` claims."""
        return self.anthropic_upstream or (ANTHROPIC_URL if self.upstream == OPENAI_URL else self.upstream)

    def secret(self, variable: str | None) -> SecretStr | None:
        """What a variable that `upstreams` names says."""
        return self._named.get(variable) if variable is not None else None

    @property
    def named(self) -> dict[str, str]:
        return {name: secret.get_secret_value() for name, secret in self._named.items()}

    @property
    def free_providers(self) -> dict[str, SecretStr]:
        """Providers that `<provider>/<model>` finds by itself, with the operator's key.

        Only before OpenAI's own API, where such a name is nobody's model, and only on loopback: nobody checks who asks.
        """
        if self.upstream != OPENAI_URL or not self.is_loopback:
            return {}
        keys = {provider: self._named.get(variable) for provider, variable in PROVIDER_KEYS.items()}
        return {provider: key for provider, key in keys.items() if key is not None and provider != "openai"}

    @property
    def settings(self) -> Settings:
        hygiene = self.hygiene.model_dump(exclude={"chat_hygiene_interval"})
        return Settings(
            compression=Compression(**self.compression.model_dump()),
            recall=Recall(**self.recall.model_dump()),
            hygiene=Hygiene(every_items=self.hygiene.chat_hygiene_interval, **hygiene),
            summaries=Summaries(by=self.summarizer),
            work=Work(human_expiry_hours=self.human_expiry_hours),
            slm=self.slm_settings,
            recall_tool=self.recall_tool,
            quarantine=self.quarantine,
        )

    @property
    def slm_settings(self) -> Slm:
        told = self.slm.learning
        recipe = told.recipe.model_dump(exclude_defaults=True)
        trainable = frozenset(self.trainable_upstreams)
        learning = Learning(**told.model_dump(exclude={"recipe"}), recipe=recipe, trainable=trainable)
        key = self.slm_key.get_secret_value() if self.slm_key else None
        return Slm(**self.slm.model_dump(exclude={"learning"}), name=self.slm_name, key=key, learning=learning)

    @property
    def trainable_upstreams(self) -> list[str]:
        """Upstreams, by the names that turns give them, whose outputs may train other models."""
        named = [name for name, section in self.upstreams.items() if section.trainable_outputs]
        both = filter(None, (RESERVED, self.local_upstream))
        return [*named, *both] if self.trainable_outputs else named

    @property
    def local_upstream(self) -> str | None:
        """What turns call the local model, also in programs beside its server, where it is no entry of `upstreams`.
        None: its names are taken."""
        return next((called for called in LOCAL_UPSTREAM if called not in self.upstreams), None)

    @property
    def overrides(self) -> dict[str, ModelOverride]:
        return {name: ModelOverride(**section.model_dump()) for name, section in self.models.items()}


def child_environment(
    config: Config, dsn: str | None, embed_socket: Path, providers_socket: Path | None = None
) -> dict[str, str]:
    """The environment for a child process: ours, with all settings as they stand now."""
    settings = config.model_dump(mode="json", exclude_none=True, exclude=set(SECRETS))
    named = {
        f"INFOLD_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }
    secrets = {
        "INFOLD_PEPPER": config.pepper, "INFOLD_SLM_KEY": config.slm_key, "OPENAI_API_KEY": config.openai_api_key,
    }  # fmt: skip
    shown = {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
    url = dsn or (config.database_url.get_secret_value() if config.database_url else "")
    sockets = {"INFOLD_PROVIDERS_SOCKET": str(providers_socket)} if providers_socket is not None else {}
    return {
        **os.environ,
        **named,
        **shown,
        "INFOLD_DATABASE_URL": url,
        "INFOLD_EMBED_SOCKET": str(embed_socket),
        **sockets,
        "INFOLD_SUPERVISED": "true",
        **NO_TELEMETRY,
    }


def engine_environment() -> dict[str, str]:
    """The environment for a process that runs a model."""
    return for_engines(os.environ)


def bare_environment() -> dict[str, str]:
    """The environment for a child process that is told all it needs request by request."""
    harmless = {name: value for name, value in os.environ.items() if HARMLESS.fullmatch(name)}
    return {**harmless, **NO_TELEMETRY, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}


# ONNX Runtime 1.32 writes usage data into the temporary folder and knows an address to send it to.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}


def silence_libraries() -> None:
    """Nothing that we load may call home; to be called before it is imported."""
    os.environ.update(NO_TELEMETRY)


SECRETS = frozenset({"database_url", "openai_api_key", "pepper", "slm_key"})
SECTIONS: Mapping[str, type[BaseModel]] = {
    "compression": CompressionSection,
    "recall": RecallSection,
    "hygiene": HygieneSection,
    "rest": RestSection,
    "slm": SlmSection,
}
OTHER_NAMES = frozenset({"config", "bench_data"})  # of the environment alone
DEFAULT_FILE = Path("proxy.yaml")


def load(path: Path | None = None, env_file: Path = ENV_FILE, **given: Any) -> Config:
    """Read the settings.

    Args:
        env_file: more of the environment, read where it is there.
        path: the YAML file; None: what INFOLD_CONFIG names, else `proxy.yaml` in the working directory if it is there.
        given: settings of the command line; None is left out.

    Raises:
        ConfigError: a file that cannot be read, an unknown name (with the nearest known one), a wrong value.
    """
    file = path or (Path(named) if (named := os.environ.get("INFOLD_CONFIG")) else None)
    if file is not None and not file.is_file():
        raise ConfigError(f"there is no settings file {file}")
    check_file(file or DEFAULT_FILE)
    check_environment(os.environ)

    class FromFile(Config):
        model_config = SettingsConfigDict(yaml_file=file or DEFAULT_FILE)
        names_file: ClassVar[Path] = env_file

    try:
        config = FromFile(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("\n".join(told(problem) for problem in error.errors())) from None
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    if wrong := list(problems(config.upstreams, config.named)):
        raise ConfigError("\n".join(wrong))
    return config


def check_file(file: Path) -> None:
    """Secrets belong into the environment, and a YAML file is a mapping."""
    if not file.is_file():
        return
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{file} must hold settings by name, such as `port: 8808`")
    for name in (name for name in content or {} if str(name).lower().removeprefix("infold_") in SECRETS):
        raise ConfigError(f"{file} holds the secret `{name}`; set it in the environment instead")


def told(problem: Mapping[str, Any]) -> str:
    """A sentence about a wrong setting, with the nearest known name where the name is unknown."""
    where = [str(part) for part in problem["loc"]]
    name = ".".join(where)
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] != "extra_forbidden":
        got = "" if name.lower().removeprefix("infold_") in SECRETS else f", got {problem['input']!r}"
        return f"{name} {must_be(problem)}{got}"
    near = difflib.get_close_matches(where[-1], known_names(where[:-1]), n=1, cutoff=0.4)
    return f"unknown setting `{name}`" + (f"; did you mean `{near[0]}`?" if near else "")


def must_be(problem: Mapping[str, Any]) -> str:
    """What a setting has to be, in our words."""
    kind, said = str(problem["type"]), str(problem["msg"])
    if kind.startswith(("model", "mapping", "dict")):
        return "must hold settings by name, each on an indented line of its own"
    for start, wanted in (("int", "a whole number"), ("float", "a number"), ("bool", "true or false")):
        if kind.startswith(start):
            return f"must be {wanted}"
    return said.removeprefix("Value error, ").replace("Input should be", "must be")


def check_environment(names: Iterable[str]) -> None:
    """Variables that look like ours, misspelt. Others are left alone: Kubernetes sets `INFOLD_SERVICE_HOST` itself."""
    sections = {field: name for name, section in SECTIONS.items() for field in section.model_fields}
    for name in (name for name in names if name.startswith("INFOLD_")):
        spelt = name.removeprefix("INFOLD_").lower()
        top, nested, _ = spelt.partition("__")
        if top in Config.model_fields or spelt in OTHER_NAMES:
            continue
        near = difflib.get_close_matches(top, Config.model_fields, n=1, cutoff=0.7)
        if nested or not (near or top in sections):
            continue
        meant = f"{sections[top]}__{top}" if top in sections else near[0]
        raise ConfigError(f"unknown setting `{name}` in the environment; did you mean `INFOLD_{meant.upper()}`?")


def known_names(path: Sequence[str]) -> list[str]:
    if not path:
        return list(Config.model_fields)
    named: Mapping[str, type[BaseModel]] = {"models": ModelSection, "upstreams": UpstreamSection}
    section = SECTIONS.get(path[0]) or named.get(path[0])
    for part in path[1:] if path[0] in SECTIONS else ():
        section = section_in(section, part)
    return list(section.model_fields) if section else []


def section_in(section: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    field = section.model_fields.get(name) if section else None
    kind = field.annotation if field is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
