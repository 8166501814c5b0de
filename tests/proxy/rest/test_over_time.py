"""Hygiene, quarantine, tasks and human requests from end to end, with a clock that the test moves."""

import httpx
import pytest

from tests.proxy.rest.conftest import refused, told


def test_hygiene_compresses_then_archives_and_a_dry_run_only_tells(timed, hands):
    old, pinned = timed.add("A long forgotten note. " * 40), timed.add("Never forget this.")
    told(timed.ask("PATCH", f"items/{pinned}", {"pin": True}))
    hands.forward(days=6.9)
    assert timed.post("hygiene")["report"]["compressed"] == 0
    hands.forward(days=0.2)
    dry = timed.post("hygiene", dry_run=True)["report"]
    assert (dry["dry_run"], dry["compressed"]) == (True, 1)
    assert [(entry["id"], entry["action"]) for entry in dry["items"] if entry["action"] != "keep"] == [
        (old, "compress")
    ]
    assert timed.post("hygiene")["report"]["compressed"] == 1
    assert timed.post("hygiene")["report"]["compressed"] == 0
    assert [entry["id"] for entry in timed.get("context")["context"]["full_items"]] == [pinned]
    hands.forward(days=24)
    assert timed.post("hygiene")["report"]["archived"] == 1
    assert old not in [item["id"] for item in timed.post("items/search", query="forgotten note")["results"]]
    assert timed.post("items/retrieve", item_id=old)["item"]["is_active"] is False


def test_quarantine_takes_content_away_and_a_person_gives_it_back(timed):
    id = timed.add("The vault code is ibex-4471.")
    thread = timed.post("quarantine", content="ibex-4471", context_type="note", reason="a code")["thread_id"]
    refused(timed.ask("POST", "items/retrieve", {"item_id": id}), 404)
    for place in ("items", "context", "state", "state/export", "quarantine", "export", "turns", "usage"):
        assert "ibex-4471" not in timed.ask("GET", place).text, place
    assert "ibex-4471" not in timed.ask("POST", "items/search", {"query": "vault code"}).text
    for name, given in [("memory_search", {"query": "vault code"}), ("get_context", {}), ("summarize_memory", {})]:
        assert "ibex-4471" not in timed.ask("POST", f"tools/{name}", given).text
    assert timed.get(f"quarantine/{thread}")["context"]["isolated_content"] == "ibex-4471"
    told(timed.ask("POST", f"quarantine/{thread}/release"))
    refused(timed.ask("POST", f"quarantine/{thread}/release"), 409)
    assert "ibex-4471" in timed.post("items/retrieve", item_id=id)["item"]["full_content"]


def test_whoever_has_no_key_is_no_person_that_releases(timed):
    nobody = type(timed)(timed.url, key=None)
    thread = nobody.post("quarantine", content="held", context_type="note", reason="why not")["thread_id"]
    refused(nobody.ask("POST", f"quarantine/{thread}/release"), 401)


def test_tasks_wait_for_each_other_and_go_to_who_can_do_them(timed):
    first = timed.post("tasks/create", title="write the parser", priority=5)["task_id"]
    second = timed.post("tasks/create", title="test the parser", dependencies=[first])["task_id"]
    refused(timed.ask("POST", "tasks/update", {"task_id": second, "status": "completed"}), 409)
    agent = timed.post("agents/create", agent_name="Ada", agent_type="coder", capabilities=["parser", "write"])[
        "agent_id"
    ]
    assert timed.post(f"tasks/{first}/assign")["agent_id"] == agent
    timed.post("tasks/update", task_id=first, status="completed")
    timed.post("tasks/update", task_id=second, status="in_progress", progress=40)
    assert [task["id"] for task in timed.get("tasks", status="in_progress")["tasks"]] == [second]
    assert timed.get("tasks", status="completed")["tasks"][0]["progress"] == 100
    assert timed.get("agents", agent_type="coder")["count"] == 1


def test_a_question_is_answered_once_or_expires(timed, hands):
    id = timed.post("hil/request", question="Ship it?", priority=3)["hil_id"]
    assert [request["id"] for request in timed.get("hil/pending")["requests"]] == [id]
    timed.post("hil/respond", hil_id=id, response="yes")
    refused(timed.ask("POST", "hil/respond", {"hil_id": id, "response": "no"}), 409)
    late = timed.post("hil/request", question="And this?")["hil_id"]
    hands.forward(hours=25)
    assert timed.get("hil/pending")["count"] == 0
    refused(timed.ask("POST", "hil/respond", {"hil_id": late, "response": "yes"}), 409)


def test_sessions_and_usage_are_told_and_a_session_is_deleted(timed):
    named = type(timed)(timed.url, session="work")
    id = named.add("a note")
    assert timed.get("sessions/work")["session"]["items"] == 1
    assert "work" in [session["id"] for session in timed.get("sessions")["sessions"]]
    told(timed.ask("DELETE", "sessions/work"))
    refused(timed.ask("POST", "items/retrieve", {"item_id": id}), 404)
    assert timed.get("usage", by="model")["usage"] == []


def test_an_export_goes_in_again_and_an_erasure_leaves_nothing(timed):
    timed.add("worth keeping")
    lines = timed.ask("GET", "export").content
    assert timed.post("erase", confirm="erase")["counts"]["items"] == 1
    assert timed.get("items")["items"] == []
    for result in ("imported", "present"):
        assert told(timed.ask("POST", "import", content=lines))["counts"]["item"][result] == 1
    assert timed.get("items")["items"][0]["full_content"] == "worth keeping"
    refused(timed.ask("POST", "erase", {"confirm": "yes"}), 422, "confirm")


def test_events_are_told_and_told_again_behind_the_last_one(timed):
    headers = {"authorization": f"Bearer {timed.key}"}
    url = f"{timed.url}/memory-manager/events"

    def first_id(more):
        with httpx.stream("GET", url, headers=headers | more, timeout=60) as reply:
            for line in reply.iter_lines():
                if line.startswith("retry") and not more:
                    timed.post("hil/request", question="Who goes there?")
                if line.startswith("id: "):
                    return line.removeprefix("id: ")
        raise AssertionError("the stream ended")

    seen = first_id({})
    timed.post("hil/request", question="And now?")
    assert first_id({"last-event-id": seen}) > seen


@pytest.mark.parametrize("name", ["memory_search", "memory_store", "get_context", "summarize_memory"])
def test_a_tool_refuses_wrong_arguments_and_does_what_it_says(timed, name):
    given = {"memory_search": {"query": "tides"}, "memory_store": {"content": "about tides", "tags": ["sea"]}}
    wrong = {
        "memory_search": ({"query": "a", "query_type": "psychic"}, "query_type"),
        "memory_store": ({"content": "a", "importance": 11}, "importance"),
        "get_context": ({"num_recent": 0}, "num_recent"),
        "summarize_memory": ({"time_range": "year"}, "time_range"),
    }
    assert name in [tool["function"]["name"] for tool in timed.get("tools")["tools"]]
    told(timed.ask("POST", f"tools/{name}", given.get(name, {})))
    body, field = wrong[name]
    refused(timed.ask("POST", f"tools/{name}", body), 422, field)
