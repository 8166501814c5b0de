"""What a scenario is: what the provider answers, and by what it is seen that a client really took part."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.scripted import Seen, Steps

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to the provider, and how many came before it in this scenario."""

    seen: Seen
    number: int

    @property
    def body(self) -> Json:
        try:
            body = json.loads(self.seen.body)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One use of an API.

    Args:
        shows: for the table, what a user does.
        reply: the provider's answer.
        sent: patterns that the client's requests (targets, headers, bodies) must hold, or it was another scenario.
        heard: patterns that the client's own result must hold, as JSON.
        at_once: how many requests the client has under way at the same time.
        leaves: the client hangs up before the answer's end.
    """

    name: str
    shows: str
    reply: Callable[[Asked], Steps]
    sent: tuple[str, ...] = ()
    heard: tuple[str, ...] = ()
    at_once: int = 1
    leaves: bool = False


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format and its scenarios.

    Args:
        managed: how the path ends to which a `POST` is managed, and so answered with `x-infold-mode`; None: all of it
            is relayed.
    """

    name: str
    title: str
    managed: str | None
    scenarios: Mapping[str, Scenario]

    def manages(self, request: Seen) -> bool:
        path = request.target.partition(b"?")[0]
        return self.managed is not None and request.method == "POST" and path.endswith(self.managed.encode())
