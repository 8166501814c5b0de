"""What a provider is asked about its windows."""

from memory.models import ModelTable
from proxy.upstream import Upstream
from proxy.windows import Windows, client_without_cookies
from tests.scripted import ScriptedUpstream, answer

SETTING = answer(b'{"object":"list","data":[]}', headers=[(b"Set-Cookie", b"__cf_bm=of-alice; path=/")])


async def test_a_cookie_that_was_set_for_one_key_does_not_go_with_another() -> None:
    """The client that asks for the list of models kept a jar, shared by all tenants."""
    with ScriptedUpstream(SETTING) as upstream:
        async with client_without_cookies() as client:
            windows = Windows(ModelTable({}), client)
            for key in (b"Bearer sk-alice", b"Bearer sk-bob"):
                await windows.ask(Upstream(upstream.url), [(b"authorization", key)])

    assert [one.header(b"authorization") for one in upstream.requests] == [b"Bearer sk-alice", b"Bearer sk-bob"]
    assert [one.header(b"cookie") for one in upstream.requests] == [None, None]
