"""Conversations in the database, for the tests of this folder."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from memory.recorder import Recorder
from memory.spool import Spool
from memory.store.pool import Pool
from tests.conversations import TENANT
from tests.memory.store.test_turns import answers, asked_for, whole_turn
from tests.proxied import PATIENT

Tell = Callable[..., Awaitable[None]]


@pytest.fixture
async def tell(pool: Pool, tmp_path: Path) -> Tell:
    """Record a conversation with its answer: `await tell("home", user("hi"), answer="hello")`."""
    recorder = Recorder(pool, Spool(tmp_path / "turns", timeout_seconds=PATIENT.disk_seconds))

    async def tell(label: str | None, *messages: Any, answer: str = "Noted.", tenant: bytes = TENANT) -> None:
        await whole_turn(recorder, asked_for(list(messages), tenant, label=label), answers(answer))

    return tell
