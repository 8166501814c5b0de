"""LLMMemoryManager has the interface that programs know, and does what it says on a real PostgreSQL."""

import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from memory import CompressionStrategy, LLMMemoryManager, MemoryApproach, TaskStatus
from memory.environment import NAMES
from memory.errors import Conflict, InvalidRequest, LLMMemoryError, NotFound
from memory.settings import Settings, Slm
from tests.clock import NOON, Hands
from tests.conftest import NewDatabase
from tests.owners import ENVIRONMENT

Make = Callable[..., LLMMemoryManager]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*NAMES, *(name for name in os.environ if name.startswith("INFOLD_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def arguments(dsn: str) -> dict[str, Any]:
    """A DSN as the constructor takes it."""
    parts = urlsplit(dsn)
    where = parse_qs(parts.query)
    return {
        "db_host": where["host"][0],
        "db_port": int(where["port"][0]),
        "db_name": parts.path.lstrip("/"),
        "db_user": parts.username,
        "db_password": unquote(parts.password or ""),
    }


@pytest.fixture(scope="module")
def database(new_database: NewDatabase) -> Iterator[dict[str, Any]]:
    with new_database() as dsn:
        yield arguments(dsn)


@pytest.fixture
def make(database: dict[str, Any]) -> Iterator[Make]:
    made: list[LLMMemoryManager] = []

    def construct(**given: Any) -> LLMMemoryManager:
        made.append(LLMMemoryManager(**{**database, **given}))
        return made[-1]

    yield construct
    for one in made:
        one.close()


@pytest.fixture
def manager(make: Make) -> LLMMemoryManager:
    return make()


# The interface

ELSEWHERE = Settings(slm=Slm(backend="openai", url="http://127.0.0.1:1/v1"))  # a local model that nothing starts
SIGNATURES = """
    count_tokens(text)
    get_embedding(text)
    compress_content(content, content_type, strategy=BALANCED)
    add_memory_item(content, content_type, priority=0, metadata=None, auto_compress=True)
    retrieve_memory_item(item_id, decompress=True)
    search_memory_semantic(query, limit=5, content_types=None)
    get_working_context(max_tokens=None)
    get_memory_state()
    perform_chat_hygiene()
    create_task(title, description='', priority=0, assigned_agent=None, dependencies=None, metadata=None)
    update_task(task_id, status=None, progress=None, metadata=None)
    get_tasks(status=None)
    create_agent(agent_name, agent_type, capabilities, assigned_tools=None, metadata=None)
    get_agents(agent_type=None)
    quarantine_context(content, context_type, reason, metadata=None)
    get_quarantined_contexts()
    get_quarantined_context(thread_id)
    request_human_input(question, priority=0, metadata=None)
    provide_human_response(hil_id, response)
    get_pending_hil_requests()
    wait_for_human_response(hil_id, timeout_seconds)
    track_token_usage(input_tokens, output_tokens)
    export_memory_state_json()
    close()
    __init__(db_host=None, db_port=None, db_name=None, db_user=None, db_password=None, model_name='gpt-4o', \
openai_api_key=None, anthropic_api_key=None, config_path=None, memory_approach='external_llm', use_slm=False, \
use_lora_finetuning=False, slm_model_name=None, session_id=None, tenant_key=None)
"""


def shown(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    default = parameter.default
    return f"{parameter.name}={default.name if isinstance(default, CompressionStrategy) else repr(default)}"


@pytest.mark.parametrize("line", SIGNATURES.strip().splitlines())
def test_each_method_takes_what_programs_give_it_in_this_order(line):
    name, _, wanted = line.strip().removesuffix(")").partition("(")
    parameters = list(inspect.signature(getattr(LLMMemoryManager, name)).parameters.values())[1:]
    positional = [shown(one) for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    expected = wanted.split(", ") if wanted else []
    assert positional[: len(expected)] == expected
    assert all("=" in extra for extra in positional[len(expected) :])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model_name": "gpt-4p"}, ["gpt-4p", "claude-3-opus", "gemma-3-4b"]),
        ({"model_name": 4}, ["model_name must be text"]),
        ({"memory_approach": "magic"}, ["memory_approach", "external_llm", "slm", "magic"]),
        ({"session_id": "a b"}, ["session_id", "128"]),
        ({"config_path": "/none.json"}, ["config_path", "/none.json"]),
        ({"use_slm": "yes"}, ["use_slm", "true or false"]),
        ({"use_slm": True, "slm_model_name": "smolm2"}, ["'smolm2'", "did you mean smollm2", "gemma-3-4b-it", "phi-2"]),
        ({"db_port": 70_000}, ["db_port", "65535"]),
        ({"clock": lambda: NOON.replace(tzinfo=None)}, ["clock", "aware"]),
    ],
)
def test_a_wrong_argument_is_a_value_error_and_nothing_is_started(given, words, tmp_path):
    with pytest.raises(ValueError, match=r"\w") as caught:
        LLMMemoryManager(**{"data_dir": tmp_path / "data", **given})
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_it_has_these_attributes(make):
    given = {"model_name": "gpt-4", "use_slm": True, "slm_model_name": "phi-2", "memory_approach": "slm"}
    made = make(**given, settings=ELSEWHERE, openai_api_key="sk-attributes", session_id="mine")
    assert (made.session_id, made.model_name, made.slm_model_name) == ("mine", "gpt-4", "phi-2")
    assert made.memory_approach is MemoryApproach.SLM
    assert (made.use_slm, made.use_lora_finetuning) == (True, False)
    assert made.model_config["context_length"] == 8_192
    assert made.config["memory_management"]["chat_hygiene_interval"] == 100
    assert "sk-" not in repr(made)


def test_the_environment_names_the_model_where_no_argument_does(make, tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("PRIMARY_LLM_MODEL=gpt-4\nUSE_SLM=true\nMEMORY_APPROACH=slm\n")
    made = make(settings=ELSEWHERE)
    assert (made.model_name, made.use_slm, made.memory_approach) == ("gpt-4", True, MemoryApproach.SLM)
    chosen = make(model_name="gpt-4o", memory_approach="external_llm", settings=ELSEWHERE)
    assert (chosen.model_name, chosen.memory_approach) == ("gpt-4o", MemoryApproach.EXTERNAL_LLM)


def test_the_environment_names_the_database_where_no_argument_does(database, tmp_path):
    values = {name.upper(): value for name, value in database.items()}
    (tmp_path / ".env").write_text("".join(f'{name}="{value}"\n' for name, value in values.items()))
    with LLMMemoryManager(session_id="by-env") as by_env, LLMMemoryManager(**database, session_id="by-env") as by_hand:
        assert by_hand.retrieve_memory_item(by_env.add_memory_item("here", "note")) is not None


# What it does


def test_an_item_comes_back_as_it_was_given(manager):
    id = manager.add_memory_item("The ferry leaves at 07:40 from pier 9.", "note", 7, {"line": [1, 2]})
    item = manager.retrieve_memory_item(id)
    assert item is not None
    assert (item["full_content"], item["metadata"], item["priority"]) == (
        "The ferry leaves at 07:40 from pier 9.", {"line": [1, 2]}, 7,
    )  # fmt: skip
    assert (item["session_id"], item["access_count"], item["is_active"]) == (manager.session_id, 1, True)
    assert item["compressed_summary"]
    assert isinstance(item["created_at"], datetime)
    assert item["created_at"].tzinfo
    short = manager.retrieve_memory_item(id, decompress=False)
    assert short is not None
    assert short["full_content"] is None
    assert manager.get_memory_state()["performance_metrics"] == {
        "compressions": 0,
        "decompressions": 1,
        "cache_hits": 1,
    }


def test_search_finds_by_other_words_and_does_not_count(manager):
    wanted = manager.add_memory_item("The ferry leaves at 07:40 from pier 9.", "note")
    manager.add_memory_item("Invoices are paid within thirty days.", "rule")
    found = manager.search_memory_semantic("When does the boat depart?", limit=1)
    assert [one["id"] for one in found] == [wanted]
    assert 0 <= found[0]["distance"] <= 2
    assert manager.search_memory_semantic("boat", content_types=["rule"])[0]["content_type"] == "rule"
    assert found[0]["access_count"] == 0


def test_a_question_is_answered_from_its_session_alone(make):
    with make(session_id="one") as one, make(session_id="other") as other:
        id = one.add_memory_item("The ferry to Skarholm leaves at 07:40.", "note")
        other.add_memory_item("The other ferry leaves at noon.", "note")
        found = one.ask("When does the ferry leave?")
        assert (found["answer"], found["by"]) == ("The ferry to Skarholm leaves at 07:40.", "passages")
        assert [source["id"] for source in found["sources"]] == [id]
        assert isinstance(found["sources"][0]["created_at"], datetime)


def test_a_long_item_is_told_shorter_and_indexed_in_the_background(manager):
    text = "\n\n".join(f"Station {n} has {n * 7} seats and a clock by maker {n % 13}." for n in range(400))
    item = manager.retrieve_memory_item(manager.add_memory_item(text, "doc"))
    assert item["compressed_token_count"] < item["token_count"] / 4
    assert item["compression_ratio"] == pytest.approx(item["compressed_token_count"] / item["token_count"])
    assert manager.wait_until_indexed(60)
    assert manager.search_memory_semantic("seats of station 77")[0]["distance"] is not None


def test_texts_are_counted_embedded_and_shortened(manager):
    assert manager.count_tokens("<|endoftext|>") > 1
    vector = manager.get_embedding("a ferry")
    assert len(vector) == 384
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert all(type(number) is float for number in vector)
    prose = " ".join(f"Sentence {n} tells of port {8000 + n} in region {n % 9}." for n in range(200))
    sizes = [manager.count_tokens(manager.compress_content(prose, "doc", one)) for one in CompressionStrategy]
    assert [size / manager.count_tokens(prose) for size in sizes] == [
        pytest.approx(share, rel=0.25) for share in (0.1, 0.25, 0.5)
    ]


def test_the_working_context_keeps_to_its_tokens(manager):
    for n in range(20):
        manager.add_memory_item(f"Item {n}: " + "word " * 50, "note", n % 11)
    context = manager.get_working_context(300)
    assert context["total_tokens"] <= 300
    assert context["available_tokens"] == 300 - context["total_tokens"]
    default = manager.get_working_context()
    assert default["total_tokens"] + default["available_tokens"] == 76_800
    assert default["full_items"][0].keys() >= {"id", "type", "content", "tokens"}


def test_hygiene_goes_by_the_clock(make):
    hands = Hands()
    made = make(clock=hands)
    id = made.add_memory_item("Old things. " * 30, "note")
    assert made.perform_chat_hygiene()["kept"] == 1
    hands.forward(days=8)
    assert made.perform_chat_hygiene(dry_run=True)["items"][0]["id"] == id
    assert made.perform_chat_hygiene()["compressed"] == 1
    hands.forward(days=30)
    assert made.perform_chat_hygiene() == {"compressed": 0, "archived": 1, "deleted": 0, "kept": 0}
    assert made.search_memory_semantic("old things") == []
    assert made.retrieve_memory_item(id)["is_active"] is False


def test_tasks_and_agents(manager):
    first = manager.create_task("Design", priority=3)
    second = manager.create_task("Build", "with tests", 9, "worker", [first], {"a": 1})
    assert [task["id"] for task in manager.get_tasks()] == [second, first]
    with pytest.raises(Conflict):
        manager.update_task(second, status="in_progress")
    manager.update_task(first, status=TaskStatus.COMPLETED)
    manager.update_task(second, "in_progress", 50, {"b": 2})
    (task,) = manager.get_tasks("in_progress")
    assert (task["progress"], task["metadata"], task["dependencies"]) == (50, {"b": 2}, [first])
    agent = manager.create_agent("Ann", "coder", ["python"], ["git"])
    assert [one["id"] for one in manager.get_agents("coder")] == [agent]
    assert manager.get_agents("tester") == []


def test_what_is_in_quarantine_is_read_by_its_thread_alone(manager):
    id = manager.add_memory_item("The vault opens with 4711 on Sundays.", "note")
    thread = manager.quarantine_context("The vault opens with 4711 on Sundays.", "secret", "a code")
    assert manager.retrieve_memory_item(id) is None
    assert manager.search_memory_semantic("vault") == []
    (listed,) = manager.get_quarantined_contexts()
    assert (listed["thread_id"], listed["isolated_content"], listed["is_active"]) == (thread, None, True)
    assert manager.get_quarantined_context(thread)["isolated_content"] == "The vault opens with 4711 on Sundays."
    assert manager.get_quarantined_context("thread_" + "0" * 32) is None
    assert "4711" not in manager.export_memory_state_json()


def test_a_waiting_program_gets_a_persons_answer(manager):
    asked = manager.request_human_input("May it go live?", 8)
    assert [one["id"] for one in manager.get_pending_hil_requests()] == [asked]
    assert manager.wait_for_human_response(asked, 0)["status"] == "pending"
    threading.Timer(0.2, manager.provide_human_response, (asked, "Yes")).start()
    answered = manager.wait_for_human_response(asked, 30)
    assert (answered["response"], answered["status"]) == ("Yes", "answered")
    assert manager.get_pending_hil_requests() == []
    with pytest.raises(Conflict):
        manager.provide_human_response(asked, "No")


def test_tokens_and_their_cost_add_up(manager):
    manager.track_token_usage(1_000, 500)
    manager.track_token_usage(1_000, 500)
    usage = manager.get_memory_state()["token_usage_stats"]
    assert usage == {"input_tokens": 2_000, "output_tokens": 1_000, "total_cost": pytest.approx(0.015)}


def test_the_export_is_json_of_this_layout(manager):
    manager.add_memory_item("content that stays inside", "note")
    manager.create_task("a task")
    text = manager.export_memory_state_json()
    assert text.startswith('{\n  "session_id"')
    told = json.loads(text)
    assert list(told)[:7] == (
        "session_id model memory_approach use_slm use_lora_finetuning timestamp memory_state".split()
    )
    assert set(told["memory_state"]) == (
        set(
            "total_context used_context available_context utilization_percentage token_usage performance_metrics".split()
        )
    )
    assert set(told["active_memory_items"][0]) == set(
        "id content_type compressed_summary token_count compressed_token_count priority access_count last_accessed".split()
    )
    assert told["tasks"][0]["title"] == "a task"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.add_memory_item("", "note"), "content must not be empty"),
        (lambda m: m.add_memory_item("a", "note", 11), "priority must be 0 to 10, got 11"),
        (lambda m: m.add_memory_item("a", "note", True), "priority must be a whole number"),
        (lambda m: m.add_memory_item("a\0", "note"), "NUL"),
        (lambda m: m.add_memory_item("\ud800", "note"), "surrogate"),
        (lambda m: m.add_memory_item("a", "note", metadata={"a": float("nan")}), "metadata"),
        (lambda m: m.search_memory_semantic("a", limit=1_001), "limit must be 1 to 1,000"),
        (lambda m: m.compress_content("a", "note", "extreme"), "aggressive, balanced, conservative"),
        (lambda m: m.create_task(""), "title must not be empty"),
        (lambda m: m.get_tasks("done"), "pending, in_progress, completed, cancelled"),
        (lambda m: m.track_token_usage(-1, 0), "input_tokens"),
        (lambda m: m.count_tokens(5), "text must be text"),
        (lambda m: m.get_embedding(""), "text must not be empty"),
    ],
)
def test_bad_input_is_a_value_error_that_names_the_field(manager, call, words):
    with pytest.raises(InvalidRequest, match=words):
        call(manager)
    assert manager.get_memory_state()["active_items"] == []


def test_unknown_ids_are_none_or_not_found(manager):
    unknown = "01a20586-afba-7fab-8e79-d4ad6f08f364"
    assert manager.retrieve_memory_item(unknown) is None
    assert manager.retrieve_memory_item("no id") is None
    for call in (
        lambda: manager.update_task(unknown, "completed"),
        lambda: manager.wait_for_human_response(unknown, 0),
    ):
        with pytest.raises(NotFound):
            call()


def test_where_the_summariser_is_away_the_digest_serves(make, monkeypatch):
    monkeypatch.setenv("INFOLD_SUMMARIZER", "upstream")
    monkeypatch.setenv("PRIMARY_LLM_PROVIDER", "http://127.0.0.1:9/v1")
    made = make(openai_api_key="sk-key")
    prose = " ".join(f"Sentence {n} tells of port {8000 + n}." for n in range(100))
    assert 0 < len(made.compress_content(prose, "doc")) < len(prose) / 2


# Whose memory


def test_tenants_do_not_meet_and_sessions_of_one_may_share(make):
    mine, also_mine, other = make(tenant_key="k1"), make(openai_api_key="k1"), make(tenant_key="k2")
    id = mine.add_memory_item("The tower is 324 metres high.", "fact", scope="tenant")
    own = mine.add_memory_item("The tower was painted in 1889.", "fact")
    assert [one["id"] for one in also_mine.search_memory_semantic("tower")] == [id]
    assert own not in {one["id"] for one in also_mine.search_memory_semantic("painted tower")}
    assert other.search_memory_semantic("tower") == []
    assert other.retrieve_memory_item(id) is None


# config_path


def test_config_path_takes_effect(make, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "models": {
                    "tiny": {
                        "context_length": 2_000, "compression_trigger": 0.5, "safe_threshold": 0.25, "max_tokens": 256,
                        "cost_per_1k_input": 1.0, "cost_per_1k_output": 2.0,
                    }
                },
                "compression_strategies": {"aggressive": 0.4},
                "memory_management": {"context_quarantine_enabled": False, "auto_prune_after_days": 10},
            }
        )
    )  # fmt: skip
    hands = Hands()
    made = make(config_path=path, model_name="tiny", clock=hands)
    context = made.get_working_context()
    assert context["total_tokens"] + context["available_tokens"] == 500
    for n in range(3):
        made.add_memory_item(f"{n} " + "alpha beta gamma. " * 100, "note")  # 400 tokens each: beyond 1,000
    state = made.get_memory_state()
    assert state["total_context_length"] == 2_000
    assert state["used_context_length"] <= 400
    assert state["compressed_items"]
    made.track_token_usage(1_000, 1_000)
    assert made.get_memory_state()["token_usage_stats"]["total_cost"] == pytest.approx(3.0)
    prose = " ".join(f"Sentence {n} tells of port {8000 + n}." for n in range(100))
    assert made.count_tokens(made.compress_content(prose, "doc", "aggressive")) > 0.3 * made.count_tokens(prose)
    with pytest.raises(Conflict, match="context_quarantine_enabled"):
        made.quarantine_context("a", "b", "c")
    hands.forward(days=11)
    assert made.perform_chat_hygiene()["archived"] == 3


# Where it lives


def test_it_works_where_an_event_loop_runs_and_in_any_thread(make):
    import asyncio

    made = make()

    async def inside() -> str:
        return made.add_memory_item("from inside a loop", "note")

    assert made.retrieve_memory_item(asyncio.run(inside())) is not None
    heard: list[object] = []
    threads = [threading.Thread(target=lambda: heard.append(made.add_memory_item("x y z", "note"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(heard)) == 5


def test_closed_is_closed_and_twice_is_once(make):
    made = make()
    made.close()
    made.close()
    with pytest.raises(LLMMemoryError, match="closed"):
        made.get_memory_state()


def test_importing_the_package_is_cheap_and_the_class_loads_no_litellm():
    program = (
        "import sys, memory; assert 'memory.items' not in sys.modules\n"
        "from memory import LLMMemoryManager\n"
        "assert not {'litellm', 'onnxruntime', 'alembic', 'pgqueuer', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=True, cwd="/")


def test_the_clock_gives_the_times(make):
    hands = Hands()
    made = make(clock=hands)
    hands.forward(hours=1)
    item = made.retrieve_memory_item(made.add_memory_item("now", "note"))
    assert item["created_at"] == NOON + timedelta(hours=1)


# Learning


def test_a_program_that_fine_tunes_turns_learning_on_unless_its_tenant_has_decided(make):
    def enabled(manager):
        return manager._loop.call(manager._engine.whole.learning.state(manager._place.tenant)).enabled

    assert not enabled(make(tenant_key="sk-learner"))
    manager = make(tenant_key="sk-learner", use_lora_finetuning=True)
    assert enabled(manager)
    manager._loop.call(manager._engine.whole.learning.switch(manager._place.tenant, False))
    assert not enabled(make(tenant_key="sk-learner", use_lora_finetuning=True))
