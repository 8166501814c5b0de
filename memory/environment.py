"""`.env` and the environment, for programs that use the memory without the proxy; the proxy reads the same names.

The environment wins over the file. A name that is set to nothing counts as not set.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import platformdirs

from memory.errors import InvalidRequest

ENV_FILE = Path(".env")
NAMES = """
    DATABASE_URL DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD REDIS_URL REDIS_HOST REDIS_PORT REDIS_DB REDIS_PASSWORD
    OPENAI_API_KEY ANTHROPIC_API_KEY MEMORY_APPROACH PRIMARY_LLM_PROVIDER PRIMARY_LLM_MODEL USE_SLM SLM_MODEL_NAME
    USE_LORA_FINETUNING API_PORT LOG_LEVEL
""".split()

PROVIDERS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "ollama": "http://127.0.0.1:11434/v1",
}

# What a process that runs foreign code may see of ours. litellm takes keys from the environment by itself, so it sees
# none.
HARMLESS = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|PYTHON\w*|VIRTUAL_ENV|LD_LIBRARY_PATH"
    r"|(?:HTTPS?|NO|ALL)_PROXY|(?:https?|no|all)_proxy"
)
DEVICES = re.compile(r"(?:CUDA|NVIDIA|HIP|HSA|ROCR)_\w+")  # which GPUs a process may use

LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*
    (?: "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>[^']*)' | (?P<plain>[^#"'\s](?:[^\n]*?)??)?? )
    \s*(?:(?<!\S)\#.*)?""",
    re.VERBOSE,
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the environment says, checked."""

    dsn: str | None = field(repr=False)  # None: the embedded database
    data_dir: Path  # of the embedded database
    pepper: bytes | None = field(repr=False)  # None: the one in the database
    openai_api_key: str | None = field(repr=False)
    anthropic_api_key: str | None = field(repr=False)
    upstream: str | None  # base URL
    summarizer: str  # "digest", "upstream" or "local"
    redis_url: str | None = field(repr=False)
    model: str | None
    approach: str | None
    use_slm: bool
    slm_model_name: str | None
    use_lora: bool


def variables(file: Path | None = ENV_FILE) -> dict[str, str]:
    """All variables, of the environment and of a file below it; without those that are empty."""
    merged = {**(env_file(file) if file else {}), **{name: value for name, value in os.environ.items() if value}}
    return {name: value for name, value in merged.items() if value}


def for_engines(values: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a process that runs a model; of `values`, else of ours."""
    given = os.environ if values is None else values
    return {name: value for name, value in given.items() if HARMLESS.fullmatch(name) or DEVICES.fullmatch(name)}


def env_file(path: Path) -> dict[str, str]:
    """The `NAME=value` lines of a file; none where there is no file.

    Values may stand in quotes, `export` before a name, comments behind `#`.

    Raises:
        InvalidRequest: a line that is none; tells its number, not what it holds.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {type(error).__name__}", str(path)) from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise InvalidRequest(f"line {number} of {path} must be NAME=value", str(path))
        found[match["name"]] = unquoted(match)
    return found


def unquoted(match: re.Match[str]) -> str:
    if match["double"] is not None:
        return re.sub(r"\\(.)", lambda escape: ESCAPES.get(escape[1], escape[1]), match["double"])
    return match["single"] or match["plain"] or ""


def surroundings(values: Mapping[str, str]) -> Surroundings:
    """What `variables` say.

    Raises:
        InvalidRequest: a value is not one that its name may have.
    """
    data_dir = values.get("INFOLD_DATA_DIR")
    pepper = values.get("INFOLD_PEPPER")
    return Surroundings(
        dsn=database_url(values),
        data_dir=Path(data_dir) if data_dir else Path(platformdirs.user_data_dir("infold")),
        pepper=pepper.encode() if pepper else None,
        openai_api_key=values.get("OPENAI_API_KEY"),
        anthropic_api_key=values.get("ANTHROPIC_API_KEY"),
        upstream=upstream(values),
        summarizer=values.get("INFOLD_SUMMARIZER", "digest"),
        redis_url=redis_url(values),
        model=values.get("PRIMARY_LLM_MODEL"),
        approach=values.get("MEMORY_APPROACH"),
        use_slm=flag(values, "USE_SLM"),
        slm_model_name=values.get("SLM_MODEL_NAME"),
        use_lora=flag(values, "USE_LORA_FINETUNING"),
    )


def database_url(values: Mapping[str, str]) -> str | None:
    """`DATABASE_URL`, else one made of `DB_*` where `DB_HOST` is among them, else None."""
    url = values.get("INFOLD_DATABASE_URL") or values.get("DATABASE_URL")
    return url or (postgres_url(values) if values.get("DB_HOST") else None)


def postgres_url(
    values: Mapping[str, str],
    host: str | None = None,
    port: int | str | None = None,
    name: str | None = None,
    user: str | None = None,
    password: str | None = None,
) -> str:
    """What is given, else `DB_*`, else localhost, 5432, infold, infold and no password. A host `/...` is a socket."""
    host = host or values.get("DB_HOST") or "localhost"
    port = whole(str(port or values.get("DB_PORT") or 5432), "db_port", 1, 65_535)
    user, name = user or values.get("DB_USER") or "infold", name or values.get("DB_NAME") or "infold"
    password = values.get("DB_PASSWORD", "") if password is None else password
    who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    if host.startswith("/"):
        return f"postgresql://{who}@/{quote(name, safe='')}?{urlencode({'host': host, 'port': port})}"
    bare = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"postgresql://{who}@{bare}:{port}/{quote(name, safe='')}"


def redis_url(values: Mapping[str, str]) -> str | None:
    """`REDIS_URL`, else one made of the other names; nothing uses it yet."""
    if url := values.get("REDIS_URL"):
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise InvalidRequest("REDIS_URL must begin with redis://, rediss:// or unix://", "REDIS_URL")
        return url
    if not values.get("REDIS_HOST"):
        return None
    port = whole(values.get("REDIS_PORT", "6379"), "REDIS_PORT", 1, 65_535)
    number = whole(values.get("REDIS_DB", "0"), "REDIS_DB", 0, 1_000_000)
    password = quote(values.get("REDIS_PASSWORD", ""), safe="")
    return f"redis://{f':{password}@' if password else ''}{values['REDIS_HOST']}:{port}/{number}"


def upstream(values: Mapping[str, str]) -> str | None:
    """The base URL that `PRIMARY_LLM_PROVIDER` names."""
    said = values.get("PRIMARY_LLM_PROVIDER")
    if said is None or said.startswith(("http://", "https://")):
        return said
    if said.lower() not in PROVIDERS:
        allowed = f"{', '.join(PROVIDERS)}, or a URL"
        raise InvalidRequest(f"PRIMARY_LLM_PROVIDER must be {allowed}, got {said!r}", "PRIMARY_LLM_PROVIDER")
    return PROVIDERS[said.lower()]


def as_settings(values: Mapping[str, str]) -> dict[str, str]:
    """The well-known names as settings of the proxy: `API_PORT` is `INFOLD_PORT`."""
    level = values.get("LOG_LEVEL", "").lower()
    named = {
        "INFOLD_PORT": values.get("API_PORT"),
        "INFOLD_LOG_LEVEL": {"warn": "warning", "critical": "error", "fatal": "error"}.get(level, level),
        "INFOLD_UPSTREAM": upstream(values),
        "INFOLD_PRIMARY_MODEL": values.get("PRIMARY_LLM_MODEL"),
        "INFOLD_MEMORY_APPROACH": values.get("MEMORY_APPROACH"),
        "INFOLD_USE_SLM": values.get("USE_SLM"),
        "INFOLD_SLM__MODEL": values.get("SLM_MODEL_NAME"),
        "INFOLD_USE_LORA_FINETUNING": values.get("USE_LORA_FINETUNING"),
        "INFOLD_DATABASE_URL": database_url(values),
        "OPENAI_API_KEY": values.get("OPENAI_API_KEY"),
    }
    redis_url(values)
    own = {name: value for name, value in values.items() if name.startswith("INFOLD_")}
    return {name: value for name, value in {**named, **own}.items() if value}


def flag(values: Mapping[str, str], name: str) -> bool:
    said = values.get(name, "false").lower()
    if said not in TRUE + FALSE:
        raise InvalidRequest(f"{name} must be one of {', '.join(TRUE + FALSE)}, got {said!r}", name)
    return said in TRUE


def whole(text: str, name: str, low: int, high: int) -> int:
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}", name)
    return int(text)
