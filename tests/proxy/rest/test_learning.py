"""Learning over REST: a tenant's word, what may be learnt, wishes, and what is refused."""

import pytest

from tests.proxied import Provider, proxying
from tests.proxy.rest.conftest import Caller, refused, told


def test_a_tenant_decides_for_itself(house):
    caller, other = Caller(house[0].url, "sk-learner"), Caller(house[0].url, "sk-other")
    state = caller.get("learning")["learning"]
    assert (state["enabled"], state["allowed"], state["since"], state["trainings"]) == (False, False, None, [])
    state = told(caller.ask("PUT", "learning", {"enabled": True}))["learning"]
    assert state["enabled"]
    assert state["since"]
    assert not other.get("learning")["learning"]["enabled"]
    assert not told(caller.ask("PUT", "learning", {"enabled": False}))["learning"]["enabled"]


@pytest.mark.parametrize("body", [{}, {"enabled": "yes"}, {"enabled": 1}, {"enabled": True, "past": None}])
def test_a_word_is_a_boolean(alice, body):
    refused(alice.ask("PUT", "learning", body), 422)


def test_what_cannot_be_done_now_says_what_to_do(alice):
    assert "slm.learning.enabled" in refused(alice.ask("POST", "learning/train", {}), 409)
    assert "the bare model reads" in refused(alice.ask("POST", "learning/rollback"), 409)


def test_a_training_is_queued_where_all_allow_it(dsn, tmp_path):
    provider = Provider()
    learning = {"slm": {"learning": {"enabled": True, "least_samples": 1}}, "trainable_outputs": True}
    with provider.serving() as upstream, proxying(upstream.url, dsn, tmp_path, **learning) as proxy:
        caller = Caller(proxy.url)
        told(caller.ask("PUT", "learning", {"enabled": True, "past": True}))
        assert "0 messages may be learnt from" in refused(caller.ask("POST", "learning/train", {}), 409)
        with proxy.client() as client:
            client.chat.completions.create(
                model="small-8k", messages=[{"role": "user", "content": "The lamp is blue."}]
            )
        training = told(caller.ask("POST", "learning/train", {"force": True}))["training"]
        state = caller.get("learning")["learning"]
    assert (training["state"], training["why"], training["force"]) == ("queued", "manual", True)
    assert [one["id"] for one in state["trainings"]] == [training["id"]]
    assert (state["samples"], state["new_samples"]) == (2, 0)
