"""What the tests of relaying share, and those of settings."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory.environment import NAMES
from proxy.destinations import PROVIDER_KEYS
from tests.relayed import relaying
from tests.scripted import ScriptedUpstream


@pytest.fixture(scope="module")
def wire() -> Iterator[tuple[ScriptedUpstream, str]]:
    """An upstream and a proxy before it, shared by the tests that only look at bytes."""
    with ScriptedUpstream() as upstream, relaying(upstream.url) as base_url:
        yield upstream, base_url


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("INFOLD_") or name in NAMES or name in PROVIDER_KEYS.values():
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write
