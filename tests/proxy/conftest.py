"""What the tests of relaying share."""

from collections.abc import Iterator

import pytest

from tests.relayed import relaying
from tests.scripted import ScriptedUpstream


@pytest.fixture(scope="module")
def wire() -> Iterator[tuple[ScriptedUpstream, str]]:
    """An upstream and a proxy before it, shared by the tests that only look at bytes."""
    with ScriptedUpstream() as upstream, relaying(upstream.url) as base_url:
        yield upstream, base_url
