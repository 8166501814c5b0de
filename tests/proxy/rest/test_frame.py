"""The frame of `/memory-manager`: whose a request is, how it is refused, what the document says."""

import httpx
import pytest

from proxy.rest.table import ENDPOINTS
from tests.proxied import Provider, proxying

DEFAULT = object()


@pytest.fixture
def ask(house):
    """Asks as whoever runs the tests: `ask("GET", "turns/abc", key=None, origin=...)`."""
    proxy, _ = house

    def request(method, path, key="sk-alice", **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with_key = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.request(method, f"{proxy.url}/memory-manager/{path}", headers=with_key | named, timeout=60)

    return request


def assert_refused(reply, status, param=DEFAULT):
    assert reply.status_code == status, reply.text
    told = reply.json()
    assert told.keys() == {"error", "detail"}
    assert told["error"].keys() == {"message", "type", "param", "code"}
    assert told["detail"] == told["error"]["message"]
    if param is not DEFAULT:
        assert told["error"]["param"] == param
    return told["detail"]


def test_what_is_not_there_is_refused_in_the_same_shape(ask):
    assert_refused(ask("GET", "turns/abc"), 404)
    assert_refused(ask("GET", "nothing/of/that/kind"), 404)


def test_a_method_that_a_path_has_not_is_told_with_those_it_has(ask):
    reply = ask("DELETE", "export")
    assert "it takes GET" in assert_refused(reply, 405)
    assert reply.headers["allow"] == "GET"


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "ä", "../etc"])
def test_a_malformed_session_is_refused_for_here_it_chooses_data(ask, name):
    said = assert_refused(ask("GET", "export", x_session_id=name.encode()), 422, "X-Session-Id")
    assert "1 to 128 characters" in said


# Without a key


def test_at_home_a_request_without_a_key_is_the_local_tenants(ask):
    assert ask("GET", "export", None).status_code == 200
    assert ask("GET", "export", "EMPTY").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1.evil.example"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:80"},
    ],
)
def test_a_page_in_the_users_browser_does_not_get_at_it(ask, headers):
    assert_refused(ask("GET", "export", None, **headers), 401)
    assert ask("GET", "export", "sk-alice", **headers).status_code == 200


@pytest.mark.parametrize("headers", [{"origin": "http://localhost:3000"}, {"host": "localhost"}, {"host": "[::1]:80"}])
def test_pages_of_this_machine_do(ask, headers):
    assert ask("GET", "export", None, **headers).status_code == 200


@pytest.mark.parametrize(("settings", "said"), [
    ({"host": "0.0.0.0"}, "listens on 0.0.0.0"),
    ({"rest": {"anonymous": "off"}}, "`rest.anonymous` is off"),
    ({"rest": {"anonymous": False}}, "`rest.anonymous` is off"),
])  # fmt: skip
def test_elsewhere_a_key_is_needed_and_the_refusal_says_why(dsn, tmp_path, settings, said):
    with Provider().serving() as upstream, proxying(upstream.url, dsn, tmp_path, **settings) as proxy:
        for key in (None, "EMPTY"):
            reply = proxy.get("/memory-manager/export", key)
            assert said in assert_refused(reply, 401)
            assert reply.headers["www-authenticate"] == "Bearer"
        assert proxy.get("/memory-manager/export", "sk-alice").status_code == 200


def test_two_keys_that_differ_are_nobodys(ask):
    assert_refused(ask("GET", "export", "sk-alice", x_api_key="sk-bob"), 401)


def test_while_the_database_was_never_there_the_memory_says_so(tmp_path):
    away = "postgresql://nobody@127.0.0.1:1/nothing"
    with Provider().serving() as upstream, proxying(upstream.url, away, tmp_path) as proxy:
        assert_refused(proxy.get("/memory-manager/export"), 503)


# The document


def test_the_document_tells_every_endpoint_and_needs_no_key(ask):
    document = ask("GET", "openapi.json", None).json()
    assert document["openapi"] == "3.1.0"
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == {(e.operation.method, f"/memory-manager/{e.operation.path}") for e in ENDPOINTS}


def test_the_least_tokens_of_a_context_in_the_document_are_taken(ask):
    parameters = ask("GET", "openapi.json", None).json()["paths"]["/memory-manager/context"]["get"]["parameters"]
    (least,) = [one["schema"]["minimum"] for one in parameters if one["name"] == "max_tokens"]
    assert ask("GET", f"context?max_tokens={least}").status_code == 200
    assert ask("GET", f"context?max_tokens={least - 1}").status_code == 422


def test_every_reference_in_the_document_leads_somewhere(ask):
    reply = ask("GET", "openapi.json", None)
    document = reply.json()

    def walk(value):
        if isinstance(value, dict):
            yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    references = set(walk(document))
    assert references
    for reference in references:
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_requests_are_counted_by_endpoint(house, ask):
    proxy, _ = house
    labels = {"endpoint": "turns/{turn}", "status": "4xx"}
    before = proxy.metric("infold_rest_requests_total", **labels)
    ask("GET", "turns/of-somebody")
    assert proxy.metric("infold_rest_requests_total", **labels) == before + 1
