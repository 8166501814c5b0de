"""HTTP to the proxy, or to the provider itself, and to the provider's log."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from servers import Server

Json = dict[str, Any]


@dataclass(slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def mode(self) -> str:
        return self.headers.get("x-infold-mode", "direct")


@dataclass(slots=True)
class Client:
    """HTTP to the proxy (or the provider itself) and to the provider's log."""

    session: aiohttp.ClientSession
    base: str  # where chat requests go
    provider: str

    async def ask(self, body: bytes, key: str, name: str = "", **headers: str) -> Reply:
        """POST a chat completion; `name` finds it in the provider's log."""
        sent = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-bench-id": name, **headers}
        async with self.session.post(f"{self.base}/v1/chat/completions", data=body, headers=sent) as answer:
            return Reply(answer.status, dict(answer.headers), await answer.read())

    async def log(self, name: str = "") -> list[Json]:
        """What the provider received under a name (all: under any), forgotten by asking."""
        async with self.session.post(f"{self.provider}/__log", params={"id": name} if name else {}) as answer:
            entries: list[Json] = orjson.loads(await answer.read())
            return entries

    async def script(self, replies: Mapping[str, Json]) -> None:
        async with self.session.post(f"{self.provider}/__script", data=orjson.dumps(replies)) as answer:
            await answer.read()

    async def get(self, path: str, key: str = "") -> bytes:
        async with self.session.get(self.base + path, headers={"authorization": f"Bearer {key}"}) as answer:
            answer.raise_for_status()
            return await answer.read()

    async def learn_windows(self, models: Sequence[str], seconds: float = 10.0) -> bool:
        """Name the models to the proxy, and wait until it has asked /v1/models; False if it has not by then.

        The list names every window of the run, so one question is enough. A probe that is large enough to be folded
        would tell more, but its embeddings would keep the job worker busy for minutes.
        """
        key = f"key-learn-{random.SystemRandom().getrandbits(64):x}"
        for model in models:
            await self.ask(chat_body(model, [{"role": "user", "content": "Hello."}]), key)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            async with self.session.get(f"{self.provider}/__asked") as answer:
                if orjson.loads(await answer.read())["models"]:
                    await asyncio.sleep(0.5)  # it still has to read the answer
                    return True
            await asyncio.sleep(0.1)
        return False

    async def wait_for_jobs(self, seconds: float) -> bool:
        """Wait until the background jobs are done; False if they are not in time, or the gauge is not there."""
        deadline = time.monotonic() + seconds
        quiet = 0
        while time.monotonic() < deadline:
            rows = [
                row
                for row in (await self.get("/metrics")).decode().splitlines()
                if row.startswith("infold_jobs_pending")
            ]
            if not rows:
                await asyncio.sleep(5)
                return False
            quiet = quiet + 1 if sum(float(row.split()[-1]) for row in rows) == 0 else 0
            if quiet >= 3:  # the gauge may lag behind the queue by one reading
                return True
            await asyncio.sleep(0.5)
        return False


@asynccontextmanager
async def connect(provider: Server, infold: Server | None, connections: int = 64) -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=connections)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield Client(session, (infold or provider).url, provider.url)


def chat_body(model: str, messages: Sequence[Mapping[str, Any]], **fields: Any) -> bytes:
    return orjson.dumps({"model": model, **fields, "messages": messages})
