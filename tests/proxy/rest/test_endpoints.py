"""Each endpoint, asked rightly and wrongly, over real HTTP."""

import contextlib
import json
import re
from pathlib import Path

import httpx
import pytest

from proxy.rest.table import ENDPOINTS
from proxy.sections import SlmSection
from tests.memory.test_detect import CAPITALS, drawn
from tests.proxied import Provider, proxying
from tests.proxy.rest.conftest import Caller, refused, told

NOBODY = "0198c000-0000-7000-8000-000000000000"
THREAD = "thread_" + "0" * 32


# Asked rightly


def test_an_item_goes_in_and_comes_back(alice):
    id = alice.add("The harbour lantern burns blue.", priority=7, metadata={"by": "me"})
    item = alice.post("items/retrieve", item_id=id)["item"]
    assert (item["id"], item["full_content"], item["priority"]) == (id, "The harbour lantern burns blue.", 7)
    assert item["metadata"] == {"by": "me"}
    assert item["compressed_summary"]
    short = alice.post("items/retrieve", item_id=id, decompress=False)["item"]
    assert short["full_content"] is None
    assert short["access_count"] == 2


def test_search_finds_it_without_counting_as_a_read(alice):
    id = alice.add("The cartographer hid the ledger behind the third clock.")
    found = alice.post("items/search", query="Where did the cartographer hide the ledger?", limit=3)
    assert found["count"] == len(found["results"])
    assert found["results"][0]["id"] == id
    assert found["results"][0]["access_count"] == 0
    assert 0 <= found["results"][0]["score"] <= 1


def test_items_are_listed_in_pages(house):
    caller = Caller(house[0].url, session="pages")
    ids = [caller.add(f"page {number}") for number in range(5)]
    seen, cursor = [], None
    while True:
        page = caller.get("items", limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_an_item_is_changed_corrected_and_deleted(alice):
    id = alice.add("The bridge is 30 m long.")
    item = told(alice.ask("PATCH", f"items/{id}", {"priority": 9, "pin": True, "correction": "It is 31 m long."}))[
        "item"
    ]
    assert (item["priority"], item["is_pinned"], item["full_content"]) == (9, True, "It is 31 m long.")
    told(alice.ask("DELETE", f"items/{id}"))
    refused(alice.ask("POST", "items/retrieve", {"item_id": id}), 404)


def test_items_stay_in_their_session_unless_they_are_the_tenants(house):
    one, other = Caller(house[0].url, session="one"), Caller(house[0].url, session="other")
    one.add("The quokka is called Marvin.")
    one.add("The wombat is called Trillian.", scope="tenant")

    def found(question):
        return [item["full_content"] for item in other.post("items/search", query=question)["results"]]

    assert "The quokka is called Marvin." not in found("What is the quokka called?")
    assert "The wombat is called Trillian." in found("What is the wombat called?")


def test_a_question_is_answered_from_what_was_stored_and_said(house):
    caller = Caller(house[0].url, key="sk-asks")
    id = caller.add("The ferry to Skarholm leaves at 07:40 from pier 9.")
    with house[0].client("sk-asks") as client:
        reply = client.chat.completions.with_raw_response.create(
            model="small-8k",
            messages=[{"role": "user", "content": "My locker on the ferry has number 4471."}],
            extra_headers={"x-session-id": "harbour"},
        )
    found = caller.post("ask", question="When does the ferry leave?")
    assert (found["by"], found["reason"]) == ("passages", "no_model")
    assert found["answer"].startswith("The ferry to Skarholm leaves at 07:40 from pier 9.")
    assert found["sources"][0] | {"score": 0, "created_at": ""} == {
        "kind": "item", "id": id, "turn": None, "session_id": caller.get("state")["state"]["session_id"],
        "about": "note", "text": "The ferry to Skarholm leaves at 07:40 from pier 9.", "score": 0, "created_at": "",
    }  # fmt: skip

    harbour = Caller(house[0].url, key="sk-asks", session="harbour")
    (source, *_) = harbour.post("ask", question="Which number has my locker?", limit=1)["sources"]
    assert (source["kind"], source["session_id"], source["about"]) == ("message", "harbour", "user")
    assert source["turn"] == source["id"] == reply.headers["x-infold-turn"]
    assert caller.get(f"turns/{source['turn']}")["status"] == "answered"
    everywhere = caller.post("ask", question="Which number has my locker?", limit=1)["sources"]
    assert [one["id"] for one in everywhere] == [source["id"]]
    assert all(source["id"] != id for source in harbour.post("ask", question="When does the ferry leave?")["sources"])

    stranger = Caller(house[0].url, key="sk-asks-nothing").post("ask", question="When does the ferry leave?")
    assert (stranger["answer"], stranger["reason"], stranger["sources"]) == (None, "nothing_found", [])
    shown = house[0].get("/metrics").text
    assert 'infold_asks_total{by="passages"}' in shown
    assert 'infold_asks_total{by="nothing"}' in shown


def test_state_context_and_export_tell_of_the_session(house):
    caller = Caller(house[0].url, key="sk-state", session="state")
    id = caller.add("a note on tides", priority=3)
    caller.post("tokens/track", input_tokens=1000, output_tokens=200)
    state = caller.get("state")["state"]
    assert state["session_id"] == "state"
    assert [entry["id"] for entry in state["active_items"]] == [id]
    assert state["token_usage_stats"]["input_tokens"] == 1000
    context = caller.get("context", max_tokens=1000)["context"]
    assert [entry["id"] for entry in context["full_items"]] == [id]
    assert context["total_tokens"] + context["available_tokens"] == 1000
    exported = json.loads(caller.get("state/export")["state_json"])
    assert exported["session_id"] == "state"
    assert [item["id"] for item in exported["active_memory_items"]] == [id]


def test_the_export_of_a_session_tells_the_approach_of_the_settings_and_no_proposal(new_database, tmp_path):
    elsewhere = SlmSection(backend="openai", url="http://127.0.0.1:1/v1")  # a local model that nothing starts
    with (
        new_database() as dsn,
        Provider().serving() as upstream,
        proxying(upstream.url, dsn, tmp_path, memory_approach="slm", use_slm=True, slm=elsewhere) as proxy,
    ):
        caller = Caller(proxy.url)
        caller.add(f"proposed: AKIA{drawn(16, CAPITALS)}")
        thread = caller.post("quarantine", content="ibex-4471", context_type="note", reason="a code")["thread_id"]
        assert caller.get("quarantine")["count"] == 2
        exported = json.loads(caller.get("state/export")["state_json"])
    assert (exported["memory_approach"], exported["use_slm"], exported["use_lora_finetuning"]) == ("slm", True, False)
    (context,) = exported["quarantined_contexts"]
    assert context["thread_id"] == thread
    assert "isolated_content" not in context


def test_tokens_are_counted_against_the_model_of_the_settings(house):
    caller = Caller(house[0].url, session="model")
    assert caller.get("state")["state"]["model_name"] == "gpt-4o"
    assert caller.get("state")["state"]["total_context_length"] == 128_000


def test_the_document_names_the_issues_endpoints():
    paths = {f"{e.operation.method} {e.operation.path}" for e in ENDPOINTS}
    assert {"POST items/add", "GET hil/pending", "POST quarantine/{thread_id}/release", "GET turns/{turn}"} <= paths


# Asked wrongly: (endpoint, body, status, field, words of the refusal)

ADD = {"content": "a", "content_type": "note"}
WRONG = [
    ("items/add", {"content_type": "note"}, 422, "content", "content is required"),
    ("items/add", {"content": "a"}, 422, "content_type", "required"),
    ("items/add", {**ADD, "content": " "}, 422, "content", "must not be empty"),
    ("items/add", {**ADD, "content": 5}, 422, "content", "must be text, got int"),
    ("items/add", {**ADD, "content": "a\0b"}, 422, "content", "NUL"),
    ("items/add", {**ADD, "metadata": {"a": "\0"}}, 422, "metadata", "NUL"),
    ("items/add", {**ADD, "metadata": [1]}, 422, "metadata", "must be an object"),
    ("items/add", {**ADD, "priority": 12}, 422, "priority", "priority must be 0 to 10, got 12"),
    ("items/add", {**ADD, "priority": -1}, 422, "priority", "0 to 10"),
    ("items/add", {**ADD, "priority": "5"}, 422, "priority", "whole number"),
    ("items/add", {**ADD, "priority": True}, 422, "priority", "whole number"),
    ("items/add", {**ADD, "auto_compress": "yes"}, 422, "auto_compress", "true or false"),
    ("items/add", {**ADD, "scope": "world"}, 422, "scope", "session, tenant"),
    ("items/retrieve", {"item_id": ADD["content"], "decompress": 1}, 422, "decompress", "true or false"),
    ("items/search", {"query": "a", "limit": 1001}, 422, "limit", "1 to 1,000"),
    ("items/search", {"query": "a", "limit": 0}, 422, "limit", "1 to 1,000"),
    ("items/search", {"query": ""}, 422, "query", "must not be empty"),
    ("items/search", {"query": "a", "content_types": "note"}, 422, "content_types", "list"),
    ("ask", {}, 422, "question", "required"),
    ("ask", {"question": " "}, 422, "question", "must not be empty"),
    ("ask", {"question": "a", "limit": 21}, 422, "limit", "1 to 20"),
    ("hygiene", {"dry_run": "no"}, 422, "dry_run", "true or false"),
    ("tokens/track", {"input_tokens": -1, "output_tokens": 0}, 422, "input_tokens", "must be 0 to"),
    ("tasks/create", {"title": ""}, 422, "title", "must not be empty"),
    ("tasks/create", {"title": "a", "dependencies": [NOBODY]}, 404, "dependencies", f"no such task: {NOBODY}"),
    ("tasks/update", {"task_id": NOBODY, "status": "done"}, 422, "status", "pending, in_progress, completed, cancelled"),
    ("tasks/update", {"task_id": NOBODY, "progress": 101}, 422, "progress", "0 to 100, got 101"),
    ("agents/create", {"agent_name": "a", "agent_type": "t", "capabilities": "x"}, 422, "capabilities", "list"),
    ("quarantine", {"content": "a", "context_type": "t", "reason": ""}, 422, "reason", "must not be empty"),
    ("hil/request", {"question": "a", "priority": 11}, 422, "priority", "0 to 10, got 11"),
    ("hil/respond", {"hil_id": NOBODY, "response": "yes"}, 404, "hil_id", "names nothing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "said"),
    WRONG,
    ids=[f"{path} {field} {said}" for path, _, _, field, said in WRONG],
)
def test_a_wrong_value_is_refused_and_its_field_named(alice, path, body, status, field, said):
    assert said in refused(alice.ask("POST", path, body), status, field)


def test_half_a_surrogate_pair_is_refused_by_the_name_of_its_field(alice):
    for body, field in [
        (rb'{"content": "a\ud800", "content_type": "note"}', "content"),
        (rb'{"content": "a", "content_type": "\udfff"}', "content_type"),
        (rb'{"content": "a", "content_type": "note", "metadata": {"a": "\ud800"}}', "metadata"),
    ]:
        assert "surrogate" in refused(alice.ask("POST", "items/add", content=body), 422, field)


@pytest.mark.parametrize("raw", [b"{", b"[]", b"5", b"\xff", b"", b"[" * 100_000])
def test_a_body_that_is_no_object_is_a_400(alice, raw):
    status = 422 if raw == b"" else 400  # nothing at all lacks its fields
    refused(alice.ask("POST", "items/add", content=raw), status)


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("items", {"limit": "many"}, "limit"),
        ("items", {"limit": 1001}, "limit"),
        ("items", {"cursor": "of another shop"}, "cursor"),
        ("items", {"status": "lost"}, "status"),
        ("context", {"max_tokens": "-1"}, "max_tokens"),
        ("context", {"max_tokens": "0"}, "max_tokens"),
        ("tasks", {"status": "done"}, "status"),
        ("hil/pending", {"wait": "61"}, "wait"),
        ("hil/pending", {"wait": "nan"}, "wait"),
    ],
)
def test_a_wrong_parameter_is_refused_and_named(alice, path, query, field):
    refused(alice.ask("GET", path, params=query), 422, field)


def test_nothing_is_half_written_when_a_value_is_wrong(house):
    caller = Caller(house[0].url, key="sk-half")
    for path, body, *_ in WRONG:
        caller.ask("POST", path, body)
    assert caller.get("items")["items"] == []
    assert caller.get("tasks")["tasks"] == []
    assert caller.get("hil/pending")["requests"] == []


def test_a_compressed_body_is_refused_by_name(alice):
    reply = httpx.post(
        f"{alice.url}/memory-manager/items/add", content=b"x", headers={"content-encoding": "gzip"}, timeout=60
    )
    refused(reply, 422, "content-encoding")


# Whose it is


def asked_with(paths, thing):
    """Every endpoint that takes an id, in its path or its body, asked with one."""
    bodies = {
        "items/retrieve": {"item_id": thing["item"]},
        "tasks/update": {"task_id": thing["task"], "progress": 5},
        "hil/respond": {"hil_id": thing["hil"], "response": "mine now"},
    }
    for endpoint in ENDPOINTS:
        path, method = endpoint.operation.path, endpoint.operation.method
        filled = re.sub(r"{(\w+)}", lambda found: thing.get(found[1].removesuffix("_id"), "memory_lost"), path)
        if "{" in path or path in bodies:
            body = bodies.get(path, {"priority": 1} if method == "PATCH" else {} if method == "POST" else None)
            yield method, filled, body


def test_a_foreign_tenants_ids_answer_404_everywhere_as_unknown_ones_do(house):
    owner, thief = Caller(house[0].url, "sk-owner", "vault"), Caller(house[0].url, "sk-thief")
    house[0].client("sk-owner").chat.completions.create(model="small-8k", messages=[{"role": "user", "content": "hi"}])
    turn = next(line["id"] for line in house[0].export("sk-owner") if line["kind"] == "turn")
    theirs = {
        "item": owner.add("the owner's alone"),
        "task": owner.post("tasks/create", title="the owner's task")["task_id"],
        "hil": owner.post("hil/request", question="whose?")["hil_id"],
        "thread": owner.post("quarantine", content="held secret", context_type="note", reason="test")["thread_id"],
        "turn": turn,
        "session": "vault",
    }
    unknown = {
        "item": NOBODY,
        "task": NOBODY,
        "hil": NOBODY,
        "thread": THREAD,
        "turn": "a" * 26,
        "session": "unheard-of",
    }
    asked = list(zip(asked_with(ENDPOINTS, theirs), asked_with(ENDPOINTS, unknown), strict=True))
    assert len(asked) >= 9
    for (method, path, body), (_, other_path, other_body) in asked:
        foreign = thief.ask(method, path, body)
        refused(foreign, 404)
        nothing = thief.ask(method, other_path, other_body)
        assert nothing.status_code == 404
        assert foreign.text.replace(path.split("/")[-1], "") == nothing.text.replace(other_path.split("/")[-1], "")
    assert owner.post("items/retrieve", item_id=theirs["item"])["item"]["full_content"] == "the owner's alone"
    assert owner.get("tasks")["tasks"][0]["progress"] == 0
    assert owner.get("hil/pending")["count"] == 1
    assert owner.get(f"quarantine/{theirs['thread']}")["context"]["isolated_content"] == "held secret"


@pytest.mark.parametrize("id", ["", "x", "0", "../../etc", NOBODY.replace("-", ""), "9" * 500])
def test_a_malformed_id_is_an_unknown_one(alice, id):
    refused(alice.ask("POST", "items/retrieve", {"item_id": id}), 404)


# Size


def resident_mib():
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def test_a_body_over_the_limit_is_refused_before_it_is_read(alice):
    """The server runs in this process, and the body is made as it goes out."""
    before, most = resident_mib(), []

    def body():
        for _ in range(1025):
            yield b" " * 65_536
            most.append(resident_mib())

    headers = {"content-length": str(1025 * 65_536), "authorization": "Bearer sk-alice"}
    try:
        reply = httpx.post(f"{alice.url}/memory-manager/items/add", content=body(), headers=headers, timeout=60)
        refused(reply, 413)
    except httpx.WriteError:  # the server hung up after its answer
        pass
    assert max(most, default=before) - before < 24


def test_a_body_without_a_length_is_refused_where_it_passes_the_limit(alice):
    def body():
        for _ in range(1100):
            yield b" " * 65_536

    headers = {"authorization": "Bearer sk-alice"}
    with contextlib.suppress(httpx.WriteError):
        refused(httpx.post(f"{alice.url}/memory-manager/items/add", content=body(), headers=headers, timeout=60), 413)
