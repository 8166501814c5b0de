"""What came of each scenario with each client, kept as JSON from run to run."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

RESULTS = Path(__file__).parent / "results.json"


class Came(StrEnum):
    GOOD = "good"  # works as directly, and nothing was touched
    TOUCHED = "touched"  # works, but something was changed on the way
    BROKEN = "broken"  # the client fared otherwise than directly
    UNABLE = "not applicable"  # the client has no way to do it


@dataclass
class Book:
    """By dialect and client: versions, and by scenario what came of it and, where the client is unable, why."""

    clients: dict[str, dict[str, dict[str, dict[str, str]]]] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Self:
        return cls(json.loads(RESULTS.read_text())) if RESULTS.exists() else cls()

    def write(
        self, dialect: str, client: str, versions: dict[str, str], scenario: str, came: Came, why: str = ""
    ) -> None:
        """Take down one result; those of other versions of the client are forgotten."""
        page = self.clients.setdefault(dialect, {}).setdefault(client, {})
        if page.get("versions") != versions:
            page.clear()
            page |= {"versions": versions, "scenarios": {}, "reasons": {}}
        page["scenarios"][scenario] = str(came)
        page["reasons"].pop(scenario, None)
        if why:
            page["reasons"][scenario] = why

    def save(self) -> None:
        RESULTS.write_text(json.dumps(self.clients, indent=1, sort_keys=True) + "\n")
