"""`infold items, search, state, ...`: a person finds, in the same tenant and session, what programs stored."""

import doctest
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner, Result

from proxy.cli import cli
from proxy.commands import shown
from proxy.commands.files import written
from proxy.commands.table import COMMANDS, Command
from tests.proxied import Proxy, proxying
from tests.scripted import ScriptedUpstream

KEY, SESSION = "sk-alice", "harbour"
NOWHERE = "01890a5d-ac96-774b-bcce-b302099a8057"
NO_THREAD = "thread_0123456789abcdef0123456789abcdef"
EVIL = "\x1b[31mred\x1b[0m \x9b2J \u202etxt.exe"
STEERING = set("\x1b\x9b\u202e\r")

Run = Callable[..., Result]


@pytest.fixture
def infold(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, as alice in one session unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    for name, value in surroundings(dsn, tmp_path).items():
        monkeypatch.setenv(name, value)

    def run(*words: str, key: str | None = KEY, session: str | None = SESSION) -> Result:
        who = ["--key", key] if key else []
        where = ["--session", session] if session and "--session" in options_of(words) - {*words} else []
        return CliRunner().invoke(cli, [*words, *who, *where])

    return run


def surroundings(dsn: str | None, folder: Path) -> dict[str, str]:
    url = {"DATABASE_URL": dsn} if dsn else {}
    return {"INFOLD_DATA_DIR": str(folder / "data"), "INFOLD_EMBEDDER": "none", **url}


def command_of(words: "tuple[str, ...] | list[str]") -> Any:
    """The command that words begin with."""
    found: Any = typer.main.get_command(cli)
    for word in words:
        if not hasattr(found, "commands") or word.startswith("-"):
            break
        found = found.commands[word]
    return found.commands[next(iter(found.commands))] if hasattr(found, "commands") else found


def options_of(words: "tuple[str, ...] | list[str]") -> set[str]:
    return {option for parameter in command_of(words).params for option in parameter.opts}


def out(result: Result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return result.stdout.strip()


def told(result: Result) -> Any:
    answer = json.loads(out(result))
    assert answer["success"] is True
    return answer


def refused(result: Result, code: int) -> str:
    """The one line that says why."""
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("infold: ")
    return line.removeprefix("infold: ")


def write(folder: Path, content: str) -> str:
    path = folder / "content.txt"
    path.write_text(content)
    return str(path)


@pytest.fixture
def add(infold: Run, tmp_path: Path) -> Callable[..., str]:
    def store(content: str, *options: str, **who: Any) -> str:
        return out(infold("items", "add", write(tmp_path, content), *options, **who))

    return store


# Help


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_teaches_with_an_example_that_exists(command: Command) -> None:
    shown = CliRunner().invoke(cli, [*command.name.split(), "--help"])
    assert shown.exit_code == 0
    assert "Example: " in shown.stdout
    (line,) = [one for one in (command.run.__doc__ or "").splitlines() if "Example: " in one]
    words = shlex.split(line.partition("Example: ")[2].rpartition("| ")[2])
    assert words.pop(0) == "infold"
    assert command_of(words).name == command.name.split()[-1]
    assert {word for word in words if word.startswith("--")} <= options_of(words)


def test_cells_and_texts_are_printed_as_their_examples_say() -> None:
    assert doctest.testmod(shown) == (0, 2)


def test_asking_for_help_loads_nothing_heavy() -> None:
    heavy = "{'asyncpg', 'numpy', 'pydantic', 'msgspec', 'httpx', 'structlog', 'rich.progress'}"
    code = f"import sys, proxy.cli; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert found.stdout == "[]\n"


# The same as over REST


@pytest.fixture
def rest(proxy: Proxy) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}", "x-session-id": SESSION}
    with httpx.Client(base_url=f"{proxy.url}/memory-manager/", headers=headers, timeout=60) as client:
        yield client


def test_json_is_what_rest_answers(infold: Run, rest: httpx.Client) -> None:
    rest.post("items/add", json={"content": f"The lantern {EVIL}", "content_type": "note", "priority": 7})
    rest.post("items/add", json={"content": "Of all sessions", "content_type": "log", "scope": "tenant"})
    rest.post("tasks/create", json={"title": "Trim the wick", "priority": 5})
    rest.post("agents/create", json={"agent_name": "Ada", "agent_type": "coder", "capabilities": ["python"]})
    rest.post("hil/request", json={"question": "Light it?"})
    rest.post("quarantine", json={"content": "rotten", "context_type": "note", "reason": "it smells"})
    rest.post("tokens/track", json={"input_tokens": 1_000, "output_tokens": 10})
    for words, path, query in (
        (["items"], "items", {}),
        (["items", "--limit", "1"], "items", {"limit": 1}),
        (["tasks"], "tasks", {}),
        (["agents"], "agents", {}),
        (["hil"], "hil/pending", {}),
        (["quarantine"], "quarantine", {}),
        (["sessions"], "sessions", {}),
        (["usage", "--by", "model"], "usage", {"by": "model"}),
    ):
        answer = told(infold(*words, "--json"))
        assert answer == rest.get(path, params=query).raise_for_status().json()
        assert any(isinstance(value, list) and value for value in answer.values()), words
    question = {"question": "Which lantern?", "limit": 2}
    assert told(infold("ask", "Which lantern?", "--limit", "2", "--json")) == rest.post("ask", json=question).json()
    found = told(infold("search", "lantern", "--type", "note", "--json"))
    asked = {"query": "lantern", "content_types": ["note"]}
    assert found == rest.post("items/search", json=asked).json()
    assert found["count"] == 1
    state, same = told(infold("state", "--json"))["state"], rest.get("state").json()["state"]
    assert state.keys() == same.keys()
    assert state["active_items"] == same["active_items"] != []


def test_a_key_names_the_tenant_that_it_names_for_the_proxy(infold: Run, rest: httpx.Client, add: Any) -> None:
    rest.post("items/add", json={"content": "The lantern is hers", "content_type": "note"})
    local = {"authorization": "Bearer none", "x-session-id": SESSION}
    rest.post("items/add", json={"content": "The lantern is everybody's", "content_type": "note"}, headers=local)
    assert "is hers" in out(infold("search", "lantern"))
    assert "is everybody's" in out(infold("search", "lantern", key=None))
    assert out(infold("search", "lantern", key="sk-bob")) == "Nothing found."
    id = add("The lantern is bob's", key="sk-bob")
    assert refused(infold("items", "show", id), 3)
    bobs = rest.get("items", headers={"authorization": "Bearer sk-bob"}).json()["items"]
    assert [item["id"] for item in bobs] == [id]


def test_without_a_session_it_is_the_default_one(infold: Run, rest: httpx.Client, add: Any) -> None:
    id = add("The lantern", session=None)
    del rest.headers["x-session-id"]
    assert [item["id"] for item in rest.get("items").json()["items"]] == [id]
    assert out(infold("items")).startswith("No items in this session.")


def test_a_pepper_of_the_operators_names_the_same_tenant_here_and_there(
    infold: Run, add: Any, dsn: str, upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFOLD_PEPPER", "black")
    id = add("The lantern", session=None)
    with proxying(upstream.url, dsn, tmp_path / "proxy", pepper="black") as proxy:
        items = proxy.get("/memory-manager/items", KEY).json()["items"]
    assert [item["id"] for item in items] == [id]
    monkeypatch.delenv("INFOLD_PEPPER")
    assert refused(infold("items", "show", id), 3)


# Items


def test_items_are_stored_shown_pinned_and_deleted(infold: Run, add: Any) -> None:
    id = add("The ferry leaves at 07:40\nfrom pier 9.", "--type", "timetable", "--priority", "7")
    listed = out(infold("items"))
    assert id in listed
    assert "The ferry leaves at 07:40 from pier 9." in listed
    shown = out(infold("items", "show", id))
    assert shown.endswith("The ferry leaves at 07:40\nfrom pier 9.")
    assert "timetable" in shown
    assert out(infold("items", "pin", id)) == "The item is pinned."
    assert told(infold("items", "show", id, "--json"))["item"]["is_pinned"]
    assert out(infold("items", "pin", id, "--off")) == "The item is no longer pinned."
    assert out(infold("items", "delete", id)) == "The item is deleted."
    assert refused(infold("items", "show", id), 3)


def test_what_is_shared_is_found_from_every_session(infold: Run, add: Any) -> None:
    shared, own = add("A lantern for all", "--shared"), add("A lantern of this session")
    found = out(infold("search", "lantern", session="another"))
    assert shared in found
    assert own not in found


def test_a_question_is_answered_from_all_of_the_memory_or_from_one_session(infold: Run, add: Any) -> None:
    id = add("The ferry leaves at 07:40 from pier 9.", "--type", "timetable")
    asked = ("ask", "When does the ferry leave?")
    answer, by, table, row = out(infold(*asked, session=None)).replace("\n\n", "\n").split("\n", 3)
    assert answer == "The ferry leaves at 07:40 from pier 9."
    assert by == "by the passages, from:"
    assert table.split() == ["kind", "id", "session", "type", "text"]
    assert row.split()[:4] == ["item", id, SESSION, "timetable"]
    assert out(infold(*asked, session="another")) == "Nothing in the memory answers that."
    found = told(infold(*asked, "--json", session=SESSION))
    assert (found["by"], found["reason"], found["sources"][0]["id"]) == ("passages", "no_model", id)
    assert refused(infold("ask", " "), 2) == "QUESTION must not be empty"
    assert refused(infold("ask", "why?", "--limit", "0"), 2).startswith("--limit must be")


def test_a_search_goes_by_meaning_though_the_model_is_yet_to_load(infold: Run, add: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("INFOLD_EMBEDDER", "builtin")
    id = add("The ferry leaves at 07:40 from pier 9.")
    (found,) = told(infold("search", "Which boats depart early?", "--json"))["results"]
    assert found["id"] == id
    assert found["distance"] < 0.7


def test_a_long_list_says_how_it_goes_on(infold: Run, add: Any) -> None:
    ids = [add(f"Item {n}") for n in range(3)]
    first = out(infold("items", "--limit", "2"))
    cursor = first.rpartition("--cursor ")[2]
    second = out(infold("items", "--cursor", cursor))
    assert [id for id in ids if id in first] == ids[1:]
    assert [id for id in ids if id in second] == ids[:1]


def test_nothing_that_is_stored_steers_the_terminal(infold: Run, add: Any) -> None:
    id = add(f"{EVIL}\r\nlantern", "--type", EVIL)
    out(infold("tasks", "create", f"task {EVIL}"))
    out(infold("agents", "create", f"agent {EVIL}", "--can", EVIL))
    out(infold("hil", "ask", f"question {EVIL}"))
    for words in (
        ["items"],
        ["items", "show", id],
        ["search", "lantern"],
        ["ask", "red lantern?"],
        ["tasks"],
        ["agents"],
        ["hil"],
    ):
        shown = out(infold(*words))
        assert "red" in shown
        assert not STEERING & set(shown), words
        as_json = infold(*words, "--json").stdout
        assert not STEERING & set(as_json), words
    assert told(infold("items", "show", id, "--json"))["item"]["content_type"] == EVIL


# Work


def test_tasks_are_made_assigned_and_finished_in_order(infold: Run) -> None:
    first = out(infold("tasks", "create", "Trim the wick", "--priority", "5", "--requires", "light"))
    second = out(infold("tasks", "create", "Light the lantern", "--after", first))
    agent = out(infold("agents", "create", "Ada", "--type", "keeper", "--can", "light"))
    assert out(infold("tasks", "assign", first)) == "The task is with Ada."
    assert first in refused(infold("tasks", "update", second, "--status", "completed"), 1)
    assert out(infold("tasks", "update", first, "--progress", "40")) == "The task is pending, at 40 percent."
    assert out(infold("tasks", "update", first, "--status", "completed")) == "The task is completed, at 100 percent."
    assert second in out(infold("tasks", "--status", "pending"))
    assert first not in out(infold("tasks", "--status", "pending"))
    assert agent in out(infold("agents", "--type", "keeper"))
    assert "No agents" in out(infold("agents", "--type", "painter"))


def test_a_question_waits_until_it_is_answered(infold: Run) -> None:
    id = out(infold("hil", "ask", "Light it?", "--priority", "3"))
    assert id in out(infold("hil"))
    assert out(infold("hil", "answer", id, "At dusk.")) == "The answer is on its way."
    assert out(infold("hil", "pending")).startswith("No questions")
    assert refused(infold("hil", "answer", id, "Never."), 1) == "the request is answered already"


def test_a_person_at_the_command_line_may_release(infold: Run, rest: httpx.Client, owner: Any) -> None:
    held = {"content": f"rotten {EVIL} fish", "context_type": "note", "reason": "it smells"}
    thread = rest.post("quarantine", json=held).json()["thread_id"]
    listed = out(infold("quarantine"))
    assert thread in listed
    assert "rotten" not in listed
    shown = out(infold("quarantine", "show", thread))
    assert "rotten" in shown
    assert not STEERING & set(shown)
    assert out(infold("search", "rotten fish")) == "Nothing found."
    assert out(infold("quarantine", "release", thread)) == "The content is back."
    assert "rotten" in out(infold("search", "rotten fish"))
    assert refused(infold("quarantine", "release", thread), 1) == "the context is released"


async def test_the_audit_names_the_command_line(infold: Run, rest: httpx.Client, owner: Any) -> None:
    held = {"content": "rotten", "context_type": "note", "reason": "it smells"}
    thread = rest.post("quarantine", json=held).json()["thread_id"]
    command = [sys.executable, "-m", "proxy.cli", "quarantine", "release", thread, "--key", KEY]
    assert subprocess.run(command, capture_output=True, timeout=240, check=True).stdout
    actors = await owner.fetch("select actor from infold.audit where action = 'quarantine.release'")
    assert [row["actor"] for row in actors] == ["cli"]


def test_hygiene_only_tells_when_it_runs_dry(infold: Run, add: Any) -> None:
    add("Fresh")
    assert "this is what would be. Items: compress 0, archive 0, delete 0, keep 1." in out(
        infold("hygiene", "--dry-run")
    )
    assert out(infold("hygiene")).startswith("The session is tidied.")
    assert told(infold("hygiene", "--json"))["report"]["dry_run"] is False


def test_state_and_usage_are_told_in_lines(infold: Run, rest: httpx.Client) -> None:
    rest.post("items/add", json={"content": "The lantern", "content_type": "note"})
    rest.post("tokens/track", json={"input_tokens": 12_345, "output_tokens": 10})
    state = out(infold("state"))
    assert "of 128,000 tokens used" in state
    assert "12,345 in, 10 out" in state
    assert SESSION in out(infold("sessions"))
    usage = out(infold("usage", "--by", "session")).splitlines()
    assert usage[0].split()[0] == "session"
    assert usage[1].split()[:3] == [SESSION, "1", "12,345"]
    assert out(infold("usage", "--session", "another")) == "No calls yet."


# Refusals


@pytest.mark.parametrize(
    "words",
    [
        ["items", "show", NOWHERE],
        ["items", "show", "no-id"],
        ["items", "delete", NOWHERE],
        ["items", "pin", NOWHERE],
        ["tasks", "update", NOWHERE, "--progress", "1"],
        ["tasks", "assign", NOWHERE],
        ["tasks", "create", "x", "--after", NOWHERE],
        ["hil", "answer", NOWHERE, "x"],
        ["quarantine", "show", NO_THREAD],
        ["quarantine", "release", "no-thread"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_is_a_3(infold: Run, words: list[str]) -> None:
    line = refused(infold(*words), 3)
    assert words[2] in line or "--after" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["items", "add", "nowhere.txt"], "FILE cannot be read: No such file or directory: nowhere.txt"),
        (["items", "add", "empty"], "FILE must not be empty"),
        (["items", "add", "latin"], "FILE must be UTF-8, which ends at byte 2"),
        (["items", "add", "text", "--priority", "11"], "--priority must be 0 to 10, got 11"),
        (["items", "add", "text", "--type", ""], "--type must not be empty"),
        (["items", "--session", "a b"], "--session must be 1 to 128 characters"),
        (["items", "--limit", "0"], "--limit must be"),
        (["items", "--status", "gone"], "--status must be"),
        (["search", ""], "QUERY must not be empty"),
        (["tasks", "create", ""], "TITLE must not be empty"),
        (["tasks", "create"], "Missing argument 'TITLE'; `infold tasks create --help`"),
        (["tasks", "update", NOWHERE, "--status", "done"], "--status must be one of"),
        (["usage", "--by", "moon"], "--by must be one of day, model, session"),
        (["usage", "--from", "yesterday"], "--from must be a date"),
        (["items", "--xyz"], "No such option: --xyz"),
        (["items", "xyz"], "No such command 'xyz'; `infold items --help`"),
        (["items", "add", "--priority", "high"], "Invalid value for '--priority'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_a_2_that_names_it(infold: Run, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"text")
    (tmp_path / "latin").write_bytes(b"a\xe9")
    assert refused(infold(*words, session=None), 2).startswith(says)


def test_a_database_that_is_away_is_a_1(infold: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://infold@127.0.0.1:1/infold")
    assert refused(infold("items"), 1).startswith("the database cannot be reached: ")


def test_a_wrong_setting_is_a_1_that_names_it(infold: Run, tmp_path: Path) -> None:
    (tmp_path / "proxy.yaml").write_text("recal: {}")
    assert refused(infold("items"), 1) == "unknown setting `recal`; did you mean `recall`?"


# Out and in again


def test_an_export_goes_into_another_tenant_and_gives_the_same(infold: Run, add: Any, tmp_path: Path) -> None:
    add("The ferry\nleaves", "--priority", "3")
    add("A lantern for all", "--shared")
    out(infold("tasks", "create", "Trim the wick"))
    file = tmp_path / "memory.jsonl"
    exported = infold("export", str(file))
    assert (exported.exit_code, exported.stdout) == (0, "")
    assert exported.stderr == f"4 lines are in {file}.\n"
    assert file.stat().st_mode & 0o777 == 0o600
    counts = told(infold("import", str(file), "--json", key="sk-bob"))["counts"]
    assert {kind: count["imported"] for kind, count in counts.items()} == {"session": 1, "item": 2, "task": 1}
    again = out(infold("import", str(file), key="sk-bob")).splitlines()
    assert [line.split() for line in again] == [
        ["kind", "imported", "present", "refused", "ignored"],
        ["item", "0", "2", "0", "0"],
        ["session", "0", "1", "0", "0"],
        ["task", "0", "1", "0", "0"],
    ]
    assert told(infold("items", "--json", key="sk-bob")) == told(infold("items", "--json"))


def test_lines_that_cannot_be_taken_fail_it_after_the_others_are_in(infold: Run, tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    file.write_text(f'{{"kind": "item"}}\nno json\n{json.dumps(line_of("The lantern"))}\n')
    result = infold("import", str(file))
    assert result.exit_code == 1
    assert result.stderr.startswith("infold: 2 lines could not be taken")
    assert "The lantern" in out(infold("items"))


def line_of(content: str) -> Mapping[str, str]:
    at = "2026-01-05T10:00:00Z"
    names = {"kind": "item", "id": NOWHERE, "session_id": SESSION, "content_type": "note", "created_at": at}
    return {**names, "content": content}


def test_a_file_is_replaced_only_by_a_whole_export(infold: Run, tmp_path: Path) -> None:
    file = tmp_path / "exports" / "memory.jsonl"
    file.parent.mkdir()
    file.write_text("as it was")

    def half() -> None:
        with written(file) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_text() == "as it was"
    assert "there is no folder" in refused(infold("export", str(file.parent / "nowhere" / "x")), 2)
    assert refused(infold("export", str(file.parent)), 1)
