"""Settings are read from file, environment and command line, checked at the start, and told well when they are wrong."""

import os
import re
from pathlib import Path

import pytest
import yaml

from memory.environment import NAMES
from memory.settings import Settings
from proxy.config import Config, ConfigError, ModelSection, bare_environment, child_environment, load
from proxy.destinations import UpstreamSection

pytestmark = pytest.mark.usefixtures("no_environment")


def test_without_anything_the_defaults_hold():
    config = load()
    assert (config.host, config.port, config.upstream) == ("127.0.0.1", 8808, "https://api.openai.com/v1")
    assert config.settings == Settings()
    assert config.is_loopback
    assert config.data_dir.is_absolute()


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file, monkeypatch):
    path = file("port: 1001\nhost: 0.0.0.0\nlog_level: debug\n")
    monkeypatch.setenv("INFOLD_PORT", "1002")
    monkeypatch.setenv("INFOLD_HOST", "::1")

    assert load(path).port == 1002
    config = load(path, port=1003, host=None)
    assert (config.port, config.host, config.log_level) == (1003, "::1", "debug")


def test_a_file_in_the_working_directory_is_found(tmp_path):
    (tmp_path / "proxy.yaml").write_text("port: 1234\n")
    assert load().port == 1234


def test_the_environment_may_name_the_file(file, monkeypatch):
    monkeypatch.setenv("INFOLD_CONFIG", str(file("port: 4321\n")))
    assert load().port == 4321


def test_an_empty_file_is_no_error(file):
    assert load(file("# nothing yet\n")).port == 8808


@pytest.mark.parametrize(
    ("variable", "value", "name", "read"),
    [
        ("INFOLD_UPSTREAM", "http://localhost:1/v1/", "upstream", "http://localhost:1/v1"),
        ("INFOLD_DATA_DIR", "/x/y", "data_dir", Path("/x/y")),
        ("INFOLD_MAX_BODY_MIB", "3", "max_body_mib", 3),
        ("INFOLD_EMBEDDER", "http://e#m", "embedder", "http://e#m"),
    ],
)
def test_every_setting_is_also_in_the_environment(monkeypatch, variable, value, name, read):
    monkeypatch.setenv(variable, value)
    assert getattr(load(), name) == read


def test_nested_settings_are_in_the_environment_too(monkeypatch):
    monkeypatch.setenv("INFOLD_COMPRESSION__TARGET", "0.4")
    monkeypatch.setenv("INFOLD_MODELS", '{"m": {"context_window": 4096}}')
    config = load()
    assert config.settings.compression.target == 0.4
    assert config.overrides["m"].context_window == 4096


def test_models_and_shares_become_what_the_memory_takes(file):
    config = load(
        file(
            "compression: {target: 0.3, digest_share: 0.5}\nrecall: {max_share: 0.1, floor: 0.2}\n"
            "models:\n  llama: {context_window: 8192, input_usd_per_million: 1.5, separate_output: true}\n"
        )
    )
    assert (config.settings.compression.digest_share, config.settings.recall.max_share) == (0.5, 0.1)
    assert config.overrides["llama"].separate_output is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 1\n", ["unknown setting `prot`", "did you mean `port`"]),
        ("compression: {tagret: 0.2}\n", ["unknown setting `compression.tagret`", "`target`"]),
        ("models: {m: {contxt_window: 5}}\n", ["models.m.contxt_window", "`context_window`"]),
        ("zzzzzz: 1\n", ["unknown setting `zzzzzz`"]),
        ("port: 70000\n", ["port", "65535", "70000"]),
        ("port: many\n", ["port must be a whole number, got 'many'"]),
        ("log_level: loud\n", ["log_level must be 'debug', 'info', 'warning' or 'error', got 'loud'"]),
        ("compression: 0.3\n", ["compression must hold settings by name"]),
        ("models: {m: {encoding: klingon}}\n", ["models.m.encoding must be", "o200k_base", "'klingon'"]),
        ("models: {m: {encoding: /nowhere/tokenizer.json}}\n", ["models.m.encoding must be", "path", "'/nowhere"]),
        ("slm: {backend: openai}\n", ["slm.url is missing"]),
        ("slm: {url: 'http://127.0.0.1:1/v1'}\n", ["slm.url names an engine", "slm.backend: openai"]),
        ("upstream: locale\n", ["upstream must be a URL", "or `local`"]),
        ("compression: {target: 0.9}\n", ["compression.target", "0.5", "0.9"]),
        ("recall: {max_share: -1}\n", ["recall.max_share"]),
        ("upstream: api.openai.com\n", ["upstream", "http://"]),
        ("workers: 0\n", ["workers"]),
        ("embedder: mine\n", ["embedder", "builtin, none", "mine"]),
        ("- a\n- b\n", ["settings by name"]),
        ("just text\n", ["settings by name"]),
        ("a: [\n", ["no YAML"]),
    ],
)
def test_a_wrong_setting_is_told_with_its_name_and_what_it_may_be(file, text, words):
    with pytest.raises(ConfigError) as caught:
        load(file(text))
    for word in words:
        assert word in str(caught.value)


def test_several_wrong_settings_are_all_told(file):
    with pytest.raises(ConfigError) as caught:
        load(file("prot: 1\nport: many\n"))
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there is no settings file"):
        load(tmp_path / "missing.yaml")


@pytest.mark.parametrize("name", ["database_url", "openai_api_key", "pepper", "DATABASE_URL", "INFOLD_PEPPER"])
def test_secrets_in_the_file_are_refused_without_being_shown(file, name):
    with pytest.raises(ConfigError) as caught:
        load(file(f"{name}: s3cret-value\n"))
    assert name in str(caught.value)
    assert "environment" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "INFOLD_DATABASE_URL"])
def test_a_database_url_of_another_kind_is_refused_without_being_shown(monkeypatch, variable):
    monkeypatch.setenv(variable, "mysql://me:s3cret@db/infold")
    with pytest.raises(ConfigError, match=r"(?i)database_url must be a URL that begins with postgresql://$"):
        load()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("INFOLD_PROT", "INFOLD_PORT"),
        ("INFOLD_UPSTREM", "INFOLD_UPSTREAM"),
        ("INFOLD_TARGET", "INFOLD_COMPRESSION__TARGET"),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest_known_one(monkeypatch, variable, meant):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match=f"unknown setting `{variable}` .* did you mean `{meant}`"):
        load()


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_left_alone(monkeypatch):
    for name in ("SERVICE_HOST", "SERVICE_PORT", "PORT_8808_TCP", "PORT_8808_TCP_ADDR", "PORT_8808_TCP_PROTO"):
        monkeypatch.setenv(f"INFOLD_{name}", "10.0.0.1")
    assert load().port == 8808


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret@h/d")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret")
    monkeypatch.setenv("INFOLD_PEPPER", "s3cret-pepper")
    config = load()

    assert config.database_url is not None
    assert config.database_url.get_secret_value().endswith("@h/d")
    assert "s3cret" not in repr(config) + str(config.model_dump(mode="json"))


@pytest.mark.parametrize("variable", ["DATABASE_URL", "INFOLD_DATABASE_URL"])
def test_a_database_url_selects_the_users_postgresql_and_an_empty_one_does_not(monkeypatch, variable):
    monkeypatch.setenv(variable, "postgresql://u@h/d")
    assert load().database_url is not None
    monkeypatch.setenv(variable, "")
    assert load().database_url is None


def test_an_empty_key_of_the_operators_is_none(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert load().openai_api_key is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)
def test_only_a_loopback_listener_is_at_home(host, loopback):
    assert load(host=host).is_loopback is loopback


def test_a_child_process_reads_the_same_settings(file, monkeypatch, tmp_path):
    monkeypatch.setenv("INFOLD_PEPPER", "pepper")
    parent = load(
        file("port: 1001\nmodels: {m: {context_window: 4096}}\ncompression: {target: 0.3}\nrecall: {floor: 0.01}\n"),
        data_dir=tmp_path / "data",
    )
    environment = child_environment(parent, "postgresql://u:p@/d", tmp_path / "embed.sock")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    child = load()

    assert child.supervised
    assert child.embed_socket == tmp_path / "embed.sock"
    assert child.database_url is not None
    assert child.database_url.get_secret_value() == "postgresql://u:p@/d"
    told = {"supervised", "embed_socket", "database_url"}
    assert child.model_dump(exclude=told) == parent.model_dump(exclude=told)


SHIPPED = Path(__file__).parents[2] / "proxy.yaml"
HIDDEN = {
    "embed_socket", "providers_socket", "slm_name", "supervised", "database_url", "openai_api_key", "pepper", "slm_key",
}  # fmt: skip


def test_the_shipped_file_changes_nothing():
    assert load(SHIPPED).model_dump() == load().model_dump()


def test_the_shipped_file_names_every_setting_with_its_default(tmp_path, monkeypatch):
    """With the first # taken away from every line that is a setting."""
    monkeypatch.setenv("AZURE_API_KEY", "a")
    monkeypatch.setenv("GEMINI_API_KEY", "g")
    lines = [line[1:] for line in SHIPPED.read_text().splitlines() if re.match(r"#(  )*[a-z_-]+:", line)]
    (tmp_path / "all.yaml").write_text("\n".join(lines))
    content = yaml.safe_load((tmp_path / "all.yaml").read_text())
    config = load(tmp_path / "all.yaml")

    assert set(content) == set(Config.model_fields) - HIDDEN
    assert set(content["models"]["my-local-model"]) == set(ModelSection.model_fields)
    examples = content["upstreams"].values()
    assert {key for example in examples for key in example} == set(UpstreamSection.model_fields)
    assert list(config.upstreams) == ["my-azure", "my-provider"]
    told = HIDDEN | {"models", "upstreams", "data_dir"}  # two are examples, the other depends on who reads it
    assert config.model_dump(exclude=told) == load().model_dump(exclude=told)


# .env, and names that people know from elsewhere


def test_names_from_elsewhere_are_settings(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text(
        "API_PORT=9000\nLOG_LEVEL=WARNING\nPRIMARY_LLM_PROVIDER=groq\nPRIMARY_LLM_MODEL=gpt-4\nINFOLD_WORKERS=2\n"
        "INFOLD_HYGIENE__ARCHIVE_AFTER_DAYS=3\nDB_HOST=h\nDB_PASSWORD=s3cret\nUNKNOWN_NAME=x\n"
        "MEMORY_APPROACH=slm\nUSE_SLM=on\nSLM_MODEL_NAME=phi-2\nUSE_LORA_FINETUNING=yes\n"
    )
    config = load()
    assert (config.port, config.log_level, config.workers, config.primary_model) == (9000, "warning", 2, "gpt-4")
    assert config.upstream == "https://api.groq.com/openai/v1"
    assert (config.memory_approach, config.use_slm, config.use_lora_finetuning) == ("slm", True, True)
    assert config.slm.model == "phi-2"
    assert config.settings.hygiene.archive_after_days == 3
    assert config.database_url is not None
    assert config.database_url.get_secret_value() == "postgresql://infold:s3cret@h:5432/infold"
    monkeypatch.setenv("API_PORT", "9001")
    assert load().port == 9001
    monkeypatch.setenv("INFOLD_PORT", "9002")
    assert load().port == 9002
    assert load(port=9003).port == 9003


def test_a_database_url_wins_over_its_parts(monkeypatch):
    monkeypatch.setenv("DB_HOST", "h")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@x/d")
    assert load().database_url.get_secret_value() == "postgresql://u@x/d"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no sign", ["line 1", ".env", "NAME=value"]),
        ("API_PORT=many", ["port", "'many'"]),
        ("LOG_LEVEL=loud", ["log_level", "'loud'"]),
        ("PRIMARY_LLM_PROVIDER=mine", ["PRIMARY_LLM_PROVIDER", "openai", "URL"]),
        ("REDIS_URL=http://x", ["REDIS_URL", "redis://"]),
    ],
)
def test_a_wrong_line_of_the_env_file_is_told(tmp_path, line, words):
    (tmp_path / ".env").write_text(line + "\n")
    with pytest.raises(ConfigError) as caught:
        load()
    for word in words:
        assert word in str(caught.value)


def test_copying_the_example_changes_nothing(tmp_path):
    before = load().model_dump()
    (tmp_path / ".env").write_text((SHIPPED.parent / ".env.example").read_text())
    assert load().model_dump() == before
    assert load().database_url is None


def test_every_name_of_the_example_is_known_and_documented():
    lines = (SHIPPED.parent / ".env.example").read_text().splitlines()
    page = (SHIPPED.parent / "docs" / "configuration.md").read_text()
    assert {line[1:].partition("=")[0] for line in lines if re.match(r"#[A-Z_]+=", line)} == set(NAMES)
    assert re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE) == NAMES


@pytest.mark.parametrize(
    "text", ["quarantine: off\nrest: {anonymous: off}\n", "quarantine: 'off'\nrest: {anonymous: 'off'}\n"]
)
def test_a_bare_off_is_off(file, text):
    config = load(file(text))
    assert (config.quarantine, config.settings.quarantine, config.rest.anonymous) == ("off", "off", "off")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hygiene: {schedule: daily}\n", ["hygiene.schedule", "cron"]),
        ("hygiene: {archive_after_day: 3}\n", ["`archive_after_days`"]),
        ("rest: {anonymous: open}\n", ["rest.anonymous", "loopback"]),
        ("quarantine: always\n", ["quarantine", "suggest"]),
        ("summarizer: gpt\n", ["summarizer", "upstream"]),
    ],
)
def test_settings_of_stored_items_are_checked(file, text, words):
    with pytest.raises(ConfigError) as caught:
        load(file(text))
    for word in words:
        assert word in str(caught.value)


# Upstreams


UPSTREAMS = """
upstreams:
  claude: {url: https://api.anthropic.com, models: ["claude-*"], api_key_env: ANTHROPIC_API_KEY}
  bedrock:
    provider: bedrock
    models: ["bedrock/*"]
    options: {aws_region_name: us-east-1}
    options_env: {aws_secret_access_key: MY_AWS_SECRET}
    fallback: claude/claude-sonnet-4-5
"""


def test_upstreams_keep_their_order_and_find_their_keys_in_the_environment(file, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "s3cret-a")
    monkeypatch.setenv("MY_AWS_SECRET", "s3cret-b")
    monkeypatch.setenv("UNRELATED", "s3cret-c")
    config = load(file(UPSTREAMS))
    assert list(config.upstreams) == ["claude", "bedrock"]
    assert config.secret("ANTHROPIC_API_KEY").get_secret_value() == "s3cret-a"
    assert config.secret("MY_AWS_SECRET").get_secret_value() == "s3cret-b"
    assert config.secret("UNRELATED") is None
    assert "s3cret" not in repr(config) + str(config.model_dump(mode="json"))


def test_a_key_may_stand_in_the_env_file(file, tmp_path):
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=a\nMY_AWS_SECRET=b\n")
    assert load(file(UPSTREAMS)).secret("MY_AWS_SECRET").get_secret_value() == "b"


def test_a_child_process_has_the_same_upstreams(file, monkeypatch, tmp_path):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a")
    monkeypatch.setenv("MY_AWS_SECRET", "b")
    parent = load(file(UPSTREAMS))
    for name, value in child_environment(parent, None, tmp_path / "e", tmp_path / "p").items():
        monkeypatch.setenv(name, value)
    child = load()
    assert child.providers_socket == tmp_path / "p"
    assert dict(child.upstreams) == dict(parent.upstreams)
    assert list(child.upstreams) == list(parent.upstreams)
    assert child.secret("MY_AWS_SECRET") == parent.secret("MY_AWS_SECRET")


def test_a_process_that_runs_litellm_sees_no_keys(monkeypatch):
    """litellm takes them from the environment by itself, and reads `.env` unless it is told not to."""
    for name in ("ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "INFOLD_PEPPER", "DATABASE_URL", "MY_TOKEN"):
        monkeypatch.setenv(name, "s3cret")
    environment = bare_environment()
    assert "s3cret" not in environment.values()
    assert (environment["LITELLM_MODE"], environment["LITELLM_LOCAL_MODEL_COST_MAP"]) == ("PRODUCTION", "True")
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{url: http://h, models: [m], modle: x}", ["unknown setting `upstreams.a.modle`", "`model"]),
        ("{url: h/v1, models: [m]}", ["upstreams.a.url must be a URL", "http://", "'h/v1'"]),
        ("{url: 'http://u:p@h', models: [m]}", ["upstreams.a.url", "api_key_env"]),
        ("{url: http://h}", ["upstreams.a.models is missing"]),
        ("{url: http://h, models: []}", ["upstreams.a.models"]),
        ("{models: [m]}", ["upstreams.a needs `url`", "`provider`"]),
        (
            "{url: http://h, models: [m], api_key_env: NO_SUCH_KEY}",
            ["upstreams.a.api_key_env", "NO_SUCH_KEY", "set it"],
        ),
        ("{url: http://h, models: [m], key_header: cookie}", ["upstreams.a.key_header", "'x-api-key'"]),
        ("{url: http://h, models: [m], key_header: api-key}", ["upstreams.a.key_header", "api_key_env"]),
        ("{url: http://h, models: [m], options: {x: 1}}", ["upstreams.a.options", "`provider`"]),
        ("{provider: gemni, models: [m]}", ["upstreams.a.provider", "'gemni'", "`gemini`"]),
        ("{provider: bedrock, models: [m], options: {aws_secret_access_key: x}}", ["may be a secret", "options_env"]),
        ("{provider: bedrock, models: [m], options_env: {a: NOT_SET}}", ["upstreams.a.options_env.a", "NOT_SET"]),
        ("{url: http://h, models: [m], fallback: b}", ["upstreams.a.fallback must be <upstream>/<model>"]),
        ("{url: http://h, models: [m], fallback: a/x}", ["upstreams.a.fallback", "the same upstream"]),
        ("{url: http://h, models: [m], fallback: geminy/x}", ["upstreams.a.fallback", "`gemini`"]),
        ("{url: http://h, models: [m], fallback: gemini/x}", ["upstreams.a.fallback", "GEMINI_API_KEY"]),
        (
            "{url: http://h, models: [m]}\n  b: {url: http://h, models: [m]}",
            ["upstreams.b.models", "upstreams.a", "'m'"],
        ),
        ("{url: http://h, models: [m]}\n  Default: {url: http://h, models: [n]}", ["upstreams.Default", "a-z"]),
    ],
)
def test_a_wrong_upstream_is_told_with_its_field_and_the_fix(file, entry, words):
    with pytest.raises(ConfigError) as caught:
        load(file(f"upstreams:\n  a: {entry}\n"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "https://api.anthropic.com"),
        ("upstream: http://mine/v1\n", "http://mine/v1"),
        ("upstream: http://mine/v1\nanthropic_upstream: http://theirs\n", "http://theirs"),
        ("anthropic_upstream: http://theirs\n", "http://theirs"),
    ],
)
def test_anthropics_paths_go_to_anthropic_unless_somebody_says_otherwise(file, text, url):
    assert load(file(text)).messages_upstream == url


@pytest.mark.parametrize(
    ("text", "free"),
    [("", {"gemini"}), ("host: 0.0.0.0\n", set()), ("upstream: http://mine/v1\n", set())],
)
def test_a_provider_is_found_by_name_only_at_home_and_before_openai(file, monkeypatch, text, free):
    monkeypatch.setenv("GEMINI_API_KEY", "g")
    monkeypatch.setenv("OPENAI_API_KEY", "o")
    assert set(load(file(text)).free_providers) == free
