"""`.env` and the environment are read by the names that people know, and wrong values are told."""

from pathlib import Path

import pytest

from memory.environment import NAMES, as_settings, env_file, postgres_url, surroundings, variables
from memory.errors import InvalidRequest


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / ".env"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A = b ", "b"),
        ("export A=b", "b"),
        ("A=b # comment", "b"),
        ("A=b#c", "b#c"),
        ("A=two words", "two words"),
        ("A='b # c'", "b # c"),
        ('A="b # c" # d', "b # c"),
        (r'A="a\"b\nc"', 'a"b\nc'),
        ("A=", ""),
        ("A= # nothing", ""),
        ("A=''", ""),
        ("A=postgres://u:p@h/d?x=y", "postgres://u:p@h/d?x=y"),
    ],
)
def test_a_line_is_read_as_people_write_it(file, line, value):
    assert env_file(file(f"# first\n\n{line}\n")) == {"A": value}


@pytest.mark.parametrize("line", ["no sign", "1A=b", '="b"', 'A="b', "A B=c"])
def test_a_wrong_line_is_told_by_its_number_and_not_shown(file, line):
    with pytest.raises(InvalidRequest, match=r"line 2 of .*\.env must be NAME=value") as caught:
        env_file(file(f"S=secret\n{line}\n"))
    assert "secret" not in str(caught.value)


def test_without_a_file_there_is_nothing(tmp_path):
    assert env_file(tmp_path / ".env") == {}


def test_the_environment_wins_over_the_file_and_nothing_is_not_set(file, monkeypatch):
    monkeypatch.setenv("USE_SLM", "true")
    monkeypatch.setenv("DB_HOST", "")
    values = variables(file("USE_SLM=false\nDB_HOST=here\nDB_NAME=\n"))
    assert values["USE_SLM"] == "true"
    assert values["DB_HOST"] == "here"
    assert "DB_NAME" not in values


def test_without_names_the_embedded_database_is_used():
    found = surroundings({})
    assert (found.dsn, found.model, found.use_slm, found.redis_url) == (None, None, False, None)
    assert found.data_dir.name == "infold"


@pytest.mark.parametrize(
    ("values", "field", "value"),
    [
        ({"DATABASE_URL": "postgresql://u@h/d", "DB_HOST": "x"}, "dsn", "postgresql://u@h/d"),
        ({"DB_HOST": "h"}, "dsn", "postgresql://infold@h:5432/infold"),
        ({"DB_NAME": "d", "DB_USER": "u"}, "dsn", None),
        (
            {"DB_HOST": "h", "DB_PORT": "6", "DB_NAME": "d/e", "DB_USER": "u@v", "DB_PASSWORD": "p:w /"},
            "dsn",
            "postgresql://u%40v:p%3Aw%20%2F@h:6/d%2Fe",
        ),
        ({"REDIS_URL": "redis://r"}, "redis_url", "redis://r"),
        (
            {"REDIS_HOST": "r", "REDIS_PORT": "1", "REDIS_DB": "2", "REDIS_PASSWORD": "p"},
            "redis_url",
            "redis://:p@r:1/2",
        ),
        ({"OPENAI_API_KEY": "k"}, "openai_api_key", "k"),
        ({"ANTHROPIC_API_KEY": "k"}, "anthropic_api_key", "k"),
        ({"MEMORY_APPROACH": "slm"}, "approach", "slm"),
        ({"PRIMARY_LLM_PROVIDER": "Anthropic"}, "upstream", "https://api.anthropic.com/v1"),
        ({"PRIMARY_LLM_PROVIDER": "http://x/v1"}, "upstream", "http://x/v1"),
        ({"PRIMARY_LLM_MODEL": "gpt-4"}, "model", "gpt-4"),
        ({"USE_SLM": "Yes"}, "use_slm", True),
        ({"SLM_MODEL_NAME": "phi-2"}, "slm_model_name", "phi-2"),
        ({"USE_LORA_FINETUNING": "1"}, "use_lora", True),
        ({"INFOLD_DATA_DIR": "/x"}, "data_dir", Path("/x")),
        ({"INFOLD_PEPPER": "p"}, "pepper", b"p"),
    ],
)
def test_each_name_says_one_thing(values, field, value):
    assert getattr(surroundings(values), field) == value


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"DB_HOST": "h", "DB_PORT": "many"}, "db_port"),
        ({"REDIS_URL": "http://r"}, "REDIS_URL"),
        ({"REDIS_HOST": "r", "REDIS_DB": "-1"}, "REDIS_DB"),
        ({"PRIMARY_LLM_PROVIDER": "mine"}, "PRIMARY_LLM_PROVIDER"),
        ({"USE_SLM": "maybe"}, "USE_SLM"),
    ],
)
def test_a_wrong_value_is_told_by_its_name(values, name):
    with pytest.raises(InvalidRequest, match=name):
        surroundings(values)


def test_secrets_are_not_shown():
    names = ("DATABASE_URL", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "INFOLD_PEPPER")
    told = repr(surroundings(dict.fromkeys(names, "s3cret") | {"REDIS_URL": "redis://s3cret"}))
    assert "s3cret" not in told


def test_arguments_win_over_names_and_a_socket_folder_is_a_host():
    assert postgres_url({"DB_HOST": "x", "DB_NAME": "d"}, host="h", port=7) == "postgresql://infold@h:7/d"
    assert postgres_url({}, host="/run/pg") == "postgresql://infold@/infold?host=%2Frun%2Fpg&port=5432"
    assert postgres_url({}, host="::1") == "postgresql://infold@[::1]:5432/infold"


def test_the_proxy_has_them_as_settings():
    values = {"API_PORT": "1", "LOG_LEVEL": "WARN", "PRIMARY_LLM_PROVIDER": "openai", "DB_HOST": "h", "X": "y"}
    assert as_settings(values | {"INFOLD_PORT": "2"}) == {
        "INFOLD_PORT": "2",
        "INFOLD_LOG_LEVEL": "warning",
        "INFOLD_UPSTREAM": "https://api.openai.com/v1",
        "INFOLD_DATABASE_URL": "postgresql://infold@h:5432/infold",
    }


def test_the_names_are_known():
    assert len(NAMES) == len(set(NAMES)) == 21
