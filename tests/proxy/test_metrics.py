"""What `/metrics` counts is what `GET usage` and `GET state` sum, and no label of it is a client's word."""

import re
import time

import pytest

from memory.store.usage import Spent
from memory.summarize import upstream as summarized_by
from proxy.metrics import Metrics
from tests.clock import NOON
from tests.conversations import user
from tests.proxied import plain
from tests.proxy.rest.conftest import Caller
from tests.proxy.test_manage import history, turn
from tests.scripted import ScriptedUpstream


def shown(proxy, name, **labels):
    """A sample of `/metrics`, as it is served; 0 where there is none."""
    text = proxy.get("/metrics").text
    wanted = ",".join(f'{label}="{value}"' for label, value in labels.items())
    found = re.search(rf"^{re.escape(f'{name}{{{wanted}}}' if labels else name)} (\S+)$", text, re.M)
    return float(found[1]) if found else 0.0


def written(caller, calls, **query):
    """The sums of usage, once so many calls are in them: they are written a moment after the answer."""
    deadline = time.monotonic() + 60
    while True:
        sums = caller.get("usage", **query)["usage"]
        if sum(row["calls"] for row in sums) >= calls:
            return {row["key"]: row for row in sums}
        assert time.monotonic() < deadline, sums
        time.sleep(0.05)


def test_tokens_and_bill_are_those_of_usage_and_of_the_turns(proxy):
    """Per model in all three; per session in usage alone, for a session's name is its client's word."""
    asked = [("gpt-4o", "one"), ("gpt-4o-2024-08-06", "one"), ("priced-8k", "two"), ("nobody-knows-it", "two")]
    turns = []
    for number, (model, session) in enumerate(asked):
        with proxy.client(default_headers={"X-Session-Id": session}) as client:
            messages = [*history(number), user("and the bill?")] if model == "priced-8k" else [user(f"hi {number}")]
            reply = client.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=256)
            turns.append(proxy.explain(reply.headers["x-infold-turn"])["attempts"][-1])
    caller = Caller(proxy.url)
    models, sessions = written(caller, 4, by="model"), written(caller, 4, by="session")

    for name, row in models.items():
        of = [told for (model, _), told in zip(asked, turns, strict=True) if model == name]
        assert row["input_tokens"] == sum(told["usage"]["input_tokens"] for told in of)
        assert row["output_tokens"] == sum(told["usage"]["output_tokens"] for told in of)
        assert row["bill_usd"] == pytest.approx(sum(told.get("cost_usd", 0) for told in of))
        assert row["counterfactual_usd"] == pytest.approx(sum(told.get("direct_usd", 0) for told in of))
    for name in ("one", "two"):
        of = [told for (_, session), told in zip(asked, turns, strict=True) if session == name]
        assert sessions[name]["input_tokens"] == sum(told["usage"]["input_tokens"] for told in of)
        assert sessions[name]["bill_usd"] == pytest.approx(sum(told.get("cost_usd", 0) for told in of))

    labels = {"gpt-4o": ["gpt-4o", "gpt-4o-2024-08-06"], "priced-8k": ["priced-8k"], "other": ["nobody-knows-it"]}
    for label, names in labels.items():
        rows = [models[name] for name in names]
        for kind in ("input", "cached", "output"):
            wanted = sum(row[f"{kind}_tokens"] for row in rows)
            assert shown(proxy, "infold_tokens_total", kind=kind, model=label) == wanted
        bill, direct = (sum(row[field] for row in rows) for field in ("bill_usd", "counterfactual_usd"))
        assert shown(proxy, "infold_cost_usd_total", model=label) == pytest.approx(bill)
        assert shown(proxy, "infold_direct_cost_usd_total", model=label) == pytest.approx(direct)
        unpriced = sum(row["unpriced_calls"] for row in rows)
        assert shown(proxy, "infold_unpriced_calls_total", model=label) == unpriced
    assert models["priced-8k"]["bill_usd"] > 0
    text = proxy.get("/metrics").text
    assert not [word for word in ("nobody-knows-it", "2024-08-06", '"one"', '"two"') if word in text]


def test_utilisation_is_the_forwarded_prompts_share_of_the_window(proxy):
    headers = turn(proxy, [*history(9), user("how full is it?")])
    forwarded = int(headers["x-infold-tokens"].split("/")[1])
    assert shown(proxy, "infold_context_utilization_count", model="small-8k") == 1
    assert shown(proxy, "infold_context_utilization_sum", model="small-8k") == pytest.approx(forwarded / 8_192)
    assert shown(proxy, "infold_context_utilization_bucket", le="1.0", model="small-8k") == 1


def test_items_searches_hygiene_quarantine_and_questions_are_counted(proxy):
    caller, nobody = Caller(proxy.url, session="home"), Caller(proxy.url, key=None)
    id = caller.add("The harbour lantern burns blue.")
    caller.post("tools/memory_store", content="The crane is green.")
    caller.post("items/search", query="lantern")
    caller.get("context", query="lantern")
    caller.post("items/retrieve", item_id=id)
    caller.post("hygiene")
    caller.post("hygiene", dry_run=True)
    caller.post("quarantine", content="lantern", context_type="note", reason="doubt")
    nobody.post("quarantine", content="doubt", context_type="note", reason="doubt")
    first = caller.post("hil/request", question="One?")["hil_id"]
    nobody.post("hil/request", question="Another's?")
    caller.post("hil/respond", hil_id=first, response="yes")

    assert shown(proxy, "infold_items_added_total", form="full") == 2
    assert shown(proxy, "infold_item_searches_total", plan="words") == 2  # there is no embedder here
    assert shown(proxy, "infold_item_search_seconds_count") == 2
    assert shown(proxy, "infold_item_retrieve_seconds_count") == 1
    assert shown(proxy, "infold_hygiene_items_total", action="kept") == 2
    assert shown(proxy, "infold_quarantined_total", by="person") == 1
    assert shown(proxy, "infold_quarantined_total", by="program") == 1
    assert shown(proxy, "infold_human_requests_pending") == 1


def test_tokens_that_a_program_tracks_are_counted_once_and_told_by_its_session(proxy):
    caller = Caller(proxy.url, session="tracked")
    caller.post("tokens/track", input_tokens=1_000, output_tokens=100)
    stats = caller.get("state")["state"]["token_usage_stats"]
    row = caller.get("usage", by="session", session="tracked")["usage"][0]
    assert (
        (stats["input_tokens"], stats["output_tokens"]) == (row["input_tokens"], row["output_tokens"]) == (1_000, 100)
    )
    assert stats["total_cost"] == row["bill_usd"] == shown(proxy, "infold_cost_usd_total", model="gpt-4o") > 0


def test_what_a_session_uses_of_its_window_is_the_sum_of_its_items(proxy):
    caller, other = Caller(proxy.url, session="here"), Caller(proxy.url, session="there")
    texts = ["a note on tides " * n for n in (3, 30, 300)]
    for text in texts:
        caller.add(text)
    other.add("not in this session " * 50)
    gone = caller.add("archived and not counted " * 20)
    caller.ask("PATCH", f"items/{gone}", {"archived": True})
    state = caller.get("state")["state"]
    counter = proxy.parts.memory._counter
    used = sum(counter.text(text, "o200k_base") for text in texts)
    assert state["used_context_length"] == used == sum(entry["tokens"] for entry in state["active_items"])
    assert state["available_context_length"] == 128_000 - used
    assert state["context_utilization_percentage"] == round(100 * used / 128_000, 2)


def test_a_bill_that_would_have_been_below_nothing_stops_no_counter():
    metrics = Metrics(["gpt-4o"])
    spent = Spent(attempt=None, at=NOON, session="s", model="gpt-4o", cost_usd=1.0, direct_usd=-0.5)
    metrics.spent(spent)
    assert metrics.registry.get_sample_value("infold_cost_usd_total", {"model": "gpt-4o"}) == 1.0
    assert metrics.registry.get_sample_value("infold_direct_cost_usd_total", {"model": "gpt-4o"}) == 0.0


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("gpt-4o", "gpt-4o"),
        ("GPT-4o-2024-08-06", "gpt-4o"),
        ("openai/gpt-4o", "gpt-4o"),
        ("ft:gpt-4o:acme::a1", "gpt-4o"),
        ("gpt-4o-of-mine", "other"),
        ("", "other"),
        ("x" * 1_000_000, "other"),
    ],
)
def test_a_model_is_named_where_it_is_known(name, label):
    assert Metrics(["gpt-4o"]).model(name) == label


async def test_summaries_are_paid_for_also_when_they_are_refused():
    told = []
    longer = plain({"role": "assistant", "content": "far longer than the text itself"}, 70)
    with ScriptedUpstream(lambda seen: longer) as provider:
        summarize = summarized_by(
            f"{provider.url}/v1", "sk", lambda model: len, "small", lambda *paid: told.append(paid)
        )
        assert await summarize("a text", 5, "gpt-4o") is None
    assert told == [("small", 70, 5)]
