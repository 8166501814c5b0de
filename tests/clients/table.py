"""docs/compatibility.md, told from the results of the last runs.

pytest tests/clients -m clients && python tests/clients/table.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.clients.chat import CHAT
from tests.clients.installing import CLIENTS
from tests.clients.messages import MESSAGES
from tests.clients.responses import RESPONSES
from tests.clients.results import Book, Came
from tests.clients.scenarios import Dialect

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
DIALECTS = [CHAT, RESPONSES, MESSAGES]
SIGNS = {Came.GOOD: "yes", Came.TOUCHED: "changed", Came.BROKEN: "**no**", Came.UNABLE: "n/a"}
NOT_RUN = "not run"

HEAD = """# Compatibility

Real clients, each once directly at a provider and once through Infold, at conversations that fit the window. The
provider is scripted on a real socket and answers as OpenAI or Anthropic do; recorders on both sides of Infold keep
every byte.

This page is made by `python tests/clients/table.py` from a run of `pytest tests/clients -m clients`, which installs
the clients in the versions below and needs npm and the package registries. With `--recall-tool auto` the run comes out
the same: the tool stands in prompts only from the first rollover on.

| in the tables | means |
|---|---|
| yes | the client's own result and its number of requests are those of the direct run; method, path, query, headers and body reached the provider as the client sent them; status, headers, body and how it ended reached the client as the provider sent them |
| changed | the result is the same, but something was changed on the way |
| **no** | the client fared otherwise than directly |
| n/a | the client has no way to do it; the reasons are below |
| not run | no run with this version yet |

Compared are headers without those about one connection (`Connection`, `Transfer-Encoding` and the like), without `Host`
and `Content-Length` of the request, and without our own `x-infold-*`; names without regard to capitals, and those of
the same name in their order.
"""
OWN_TESTS = """## openai-python's own tests

`python tests/clients/openai_own.py CHECKOUT` runs the tests that openai-python brings along directly at their mock of
the API and through Infold. Of release 3.3.1 (commit e43b4224) 9,124 pass and 144 are skipped, the same ones both ways;
120 of the requests were managed ones, all others relayed.
"""
NOT_TESTED = """## Not tested here

- Other dialects than those above.
- Conversations over the window: there `messages` change by design. The tests in `tests/laws` hold what must stay.
- TLS and HTTP/2, audio and files; `tests/proxy/test_tunnel.py` has Realtime, `tests/laws/test_wire.py` sends odd bodies, methods and paths by hand.
- That the provider is OpenAI or Anthropic itself. No key and no network is used.
- For a model whose window nobody told it, Infold asks the provider's `/v1/models` by itself, at most once an hour. The
  clients here ask for a known model.
"""


def page(book: Book) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(book, dialect) for dialect in DIALECTS), OWN_TESTS, NOT_TESTED])


def section(book: Book, dialect: Dialect) -> str:
    """One dialect: counts by client, then scenarios by clients, then why something is not applicable."""
    speaking = [client for client in CLIENTS if dialect.name in client.drivers]
    pages = {client.name: book.clients.get(dialect.name, {}).get(client.name, {}) for client in speaking}
    managed = (
        "All is relayed." if dialect.managed is None else f"`POST …{dialect.managed}` is managed, all else relayed."
    )
    lines = [f"## {dialect.title}", "", managed, ""]
    lines += ["| client | versions | yes | changed | no | n/a |", "|---|---|---|---|---|---|"]
    for client in speaking:
        came = list(pages[client.name].get("scenarios", {}).values())
        versions = ", ".join(f"{name} {value}" for name, value in pages[client.name].get("versions", {}).items())
        counts = " | ".join(str(came.count(each)) for each in Came)
        lines.append(f"| {client.title} | {versions or NOT_RUN} | {counts} |")
    lines += [
        "",
        f"| scenario | {' | '.join(client.name for client in speaking)} |",
        "|---" * (len(speaking) + 1) + "|",
    ]
    for scenario in dialect.scenarios.values():
        cells = [sign(pages[client.name].get("scenarios", {}).get(scenario.name)) for client in speaking]
        lines.append(f"| {scenario.name}: {scenario.shows} | {' | '.join(cells)} |")
    lines += ["", "Not applicable:", ""]
    for client in speaking:
        reasons = pages[client.name].get("reasons", {})
        told = "; ".join(f"{name}: {reasons[name]}" for name in dialect.scenarios if name in reasons)
        lines += [f"- {client.title}: {told}."] if told else []
    return "\n".join([*lines, ""])


def sign(came: str | None) -> str:
    return NOT_RUN if came is None else SIGNS[Came(came)]


if __name__ == "__main__":
    PAGE.write_text(page(Book.load()))
