"""Programs see a table of models, and a JSON file changes it and the memory's settings, key by key."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memory.errors import InvalidRequest
from memory.models import ModelOverride, ModelTable
from memory.settings import Settings
from memory.table import ConfigFile, in_effect, known_models, model_config, read_config
from proxy.cli import cli

REQUIRED = """
    gpt-4 gpt-4-32k gpt-4o gpt-4o-mini gpt-4-turbo gpt-3.5-turbo gpt-3.5-turbo-16k gpt-5 o1 o3 o4-mini
    claude-3-haiku claude-3-sonnet claude-3-opus claude-3-5-sonnet claude-3-7-sonnet claude-sonnet-4 claude-opus-4-5
    gemini-1.5-pro gemini-2.5-flash gemma-3-4b phi-2 mistral-7b
""".split()


@pytest.fixture
def read(tmp_path: Path):
    def write_and_read(content: object, settings: Settings | None = None) -> ConfigFile:
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_config(path, settings or Settings())

    return write_and_read


# The table


@pytest.mark.parametrize("name", [*REQUIRED, *known_models(ModelTable())])
def test_every_model_of_the_table_has_a_window_and_limits(name):
    found = model_config(name, ModelTable())
    assert found["context_length"] >= 2_048
    assert 0 < found["max_tokens"] <= max(found["context_length"], 131_072)
    assert found["safe_threshold"] < found["compression_trigger"] < 1


def test_the_table_names_all_that_are_required_and_none_twice():
    known = known_models(ModelTable())
    assert set(REQUIRED) <= set(known)
    assert len(set(known)) == len(known)
    every_claude = {name for name in ModelTable().names() if name.startswith("claude-") and name.count("-") < 4}
    assert {name for name in every_claude if name[-1].isdigit() and "20" not in name} <= set(known)


def test_what_an_operator_names_stands_first():
    table = ModelTable({"mine": ModelOverride(context_window=5_000), "gpt-4o": ModelOverride(context_window=9_000)})
    assert known_models(table)[:2] == ["mine", "gpt-4o"]


def test_a_model_is_a_mapping_with_these_keys():
    found = model_config("gpt-4o", ModelTable())
    assert dict(found) == {
        "context_length": 128_000,
        "compression_trigger": 0.75,
        "safe_threshold": 0.6,
        "max_tokens": 16_384,
        "cost_per_1k_input": 0.0025,
        "cost_per_1k_output": 0.01,
    }
    assert found.context_length == found["context_length"]
    assert found == dict(found)
    with pytest.raises(KeyError):
        found["keys"]


@pytest.mark.parametrize(
    ("name", "window"), [("gemma-3-4b", 131_072), ("gemma-3-4b-it", 131_072), ("ft:gpt-4o:acme::a1", 128_000)]
)
def test_other_names_of_a_model_are_known(name, window):
    assert model_config(name, ModelTable())["context_length"] == window


def test_an_unknown_model_is_a_value_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'gpt-4p'") as caught:
        model_config("gpt-4p", ModelTable())
    assert "claude-3-opus" in str(caught.value)
    assert "did you mean gpt-4" in str(caught.value)


def test_the_command_line_prints_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxy.yaml").write_text("models: {mine: {context_window: 5000}}\n")
    told = CliRunner().invoke(cli, ["models", "--json"])
    rows = json.loads(told.output)
    assert next(iter(rows)) == "mine"
    assert set(REQUIRED) <= set(rows)
    assert rows["gpt-4o"] == dict(model_config("gpt-4o", ModelTable()))
    table = CliRunner().invoke(cli, ["models"]).output.splitlines()
    assert table[0].split()[:2] == ["model", "window"]
    assert len(table) == len(rows) + 1


# The file

MODEL = {
    "context_length": 4_096,
    "compression_trigger": 0.5,
    "safe_threshold": 0.25,
    "max_tokens": 512,
    "cost_per_1k_input": 0.5,
    "cost_per_1k_output": 1.5,
}


def test_a_model_of_the_file_is_known_as_it_says(read):
    file = read({"models": {"mine": MODEL}})
    assert dict(model_config("mine", ModelTable(file.models))) == MODEL


@pytest.mark.parametrize("key", MODEL)
def test_each_key_of_a_known_model_changes_that_alone(read, key):
    before = dict(model_config("gpt-4o", ModelTable()))
    after = dict(model_config("gpt-4o", ModelTable(read({"models": {"gpt-4o": {key: MODEL[key]}}}).models)))
    assert after == before | {key: MODEL[key]}


def test_a_price_of_answers_alone_is_kept_for_a_model_without_prices(read):
    file = read({"models": {"phi-2": {"cost_per_1k_output": 0.25}}})
    found = model_config("phi-2", ModelTable(file.models))
    assert (found["cost_per_1k_input"], found["cost_per_1k_output"]) == (0, 0.25)


@pytest.mark.parametrize(
    ("section", "change", "name", "value"),
    [
        ("compression_strategies", {"aggressive": 0.2}, "strategies.aggressive", 0.2),
        ("compression_strategies", {"balanced": {"target_ratio": 0.3}}, "strategies.balanced", 0.3),
        ("compression_strategies", {"conservative": 0.6}, "strategies.conservative", 0.6),
        ("memory_management", {"max_compressed_items": 5}, "hygiene.max_compressed_items", 5),
        ("memory_management", {"auto_prune_after_days": 9.5}, "hygiene.archive_after_days", 9.5),
        ("memory_management", {"chat_hygiene_interval": 7}, "hygiene.every_items", 7),
        ("memory_management", {"context_quarantine_enabled": False}, "quarantine", "off"),
    ],
)
def test_each_setting_of_the_file_changes_one_of_ours(read, section, change, name, value):
    found: Any = read({section: change}).settings
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value
    assert read({section: {}}).settings == Settings()


def test_quarantine_can_be_switched_off(read):
    assert read({}).quarantine
    assert not read({"memory_management": {"context_quarantine_enabled": False}}).quarantine


def test_what_is_in_effect_reads_as_such_a_file(read):
    said = {
        "models": {"mine": MODEL},
        "compression_strategies": {"aggressive": 0.05, "balanced": 0.2, "conservative": 0.4},
        "memory_management": {
            "max_compressed_items": 10,
            "auto_prune_after_days": 3.0,
            "context_quarantine_enabled": False,
            "chat_hygiene_interval": 4,
        },
    }
    file = read(said)
    assert in_effect(file, ModelTable(file.models)) == said
    assert read(in_effect(file, ModelTable(file.models))) == file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["no JSON", "config.json"]),
        ([], ["config_path must be an object"]),
        ({"modles": {}}, ["'modles'", "did you mean models?", "memory_management"]),
        ({"models": []}, ["models must be an object"]),
        ({"models": {"m": {"context_length": 4096, "max_token": 1}}}, ["models.m", "did you mean max_tokens?"]),
        ({"models": {"m": {"max_tokens": 512}}}, ["models.m.context_length is missing"]),
        ({"models": {"m": {"context_length": "4096"}}}, ["models.m.context_length", "whole number", "str"]),
        ({"models": {"m": {"context_length": 1}}}, ["models.m.context_length", "256"]),
        ({"models": {"gpt-4o": {"compression_trigger": 75}}}, ["models.gpt-4o.compression_trigger", "0.05 to 1"]),
        ({"models": {"gpt-4o": {"cost_per_1k_input": -1}}}, ["cost_per_1k_input", "-1"]),
        ({"compression_strategies": {"balance": 0.2}}, ["did you mean balanced?"]),
        ({"compression_strategies": {"balanced": 2}}, ["compression_strategies.balanced", "0.01 to 1"]),
        ({"compression_strategies": {"balanced": {"ratio": 1}}}, ["'ratio'", "target_ratio"]),
        ({"compression_strategies": {"balanced": {}}}, ["balanced.target_ratio", "null"]),
        ({"memory_management": {"max_compressed_items": True}}, ["max_compressed_items", "bool"]),
        ({"memory_management": {"auto_prune_after_days": "30"}}, ["auto_prune_after_days", "str"]),
        ({"memory_management": {"context_quarantine_enabled": 1}}, ["context_quarantine_enabled", "true or false"]),
        ({"memory_management": {"chat_hygiene_interval": -1}}, ["chat_hygiene_interval", "-1"]),
    ],
)
def test_a_wrong_file_is_told_with_the_key_and_what_is_allowed(read, content, words):
    with pytest.raises(InvalidRequest) as caught:
        read(content)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidRequest, match="No such file"):
        read_config(tmp_path / "none.json", Settings())
