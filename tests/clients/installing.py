"""The clients, and an environment for each: made once from pinned versions, and kept."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PINNED = HERE / "environments"
DRIVERS = HERE / "drivers"
MAKING_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Client:
    """A program that speaks to a provider.

    Args:
        name: of its pinned versions: `environments/NAME.txt` for Python, the folder `environments/NAME` for Node.
        drivers: for each dialect that it speaks, the script that drives it.
        shares: the name of the client whose environment is this one's, too; empty: it has its own.
    """

    name: str
    title: str
    drivers: dict[str, str]
    shares: str = ""

    @property
    def environment(self) -> str:
        return self.shares or self.name

    @property
    def runs_on_node(self) -> bool:
        return (PINNED / self.environment).is_dir()

    def driver(self, dialect: str) -> Path:
        return DRIVERS / dialect / self.drivers[dialect]


DIALECTS = ("chat", "responses", "messages")
OPENAI = {"chat": "openai_sdk.py", "responses": "openai_sdk.py"}
CLIENTS = [
    Client("openai-1", "openai (Python) 1.x", OPENAI),
    Client("openai-2", "openai (Python) 2.x", OPENAI),
    Client("openai-3", "openai (Python) 3.x", OPENAI),
    Client(
        "openai-3-async",
        "AsyncOpenAI (Python) 3.x",
        dict.fromkeys(("chat", "responses"), "openai_async.py"),
        "openai-3",
    ),
    Client("langchain", "LangChain (Python)", {"chat": "langchain_chat.py", "responses": "langchain_chat.py"}),
    Client("llama-index", "LlamaIndex (Python)", {"chat": "llama_index_llm.py"}),
    Client("pydantic-ai", "Pydantic AI", dict.fromkeys(DIALECTS, "pydantic_agents.py")),
    Client("openai-agents", "OpenAI Agents SDK (Python)", {"chat": "agents_sdk.py", "responses": "agents_sdk.py"}),
    Client("instructor", "Instructor (Python)", {"chat": "instructor_models.py"}),
    Client("litellm", "LiteLLM, as a library", {"chat": "litellm_sdk.py"}),
    Client("openai-node", "openai (Node)", {"chat": "openai_node.mjs", "responses": "openai_node.mjs"}),
    Client(
        "openai-agents-node", "OpenAI Agents SDK (Node)", {"chat": "agents_node.mjs", "responses": "agents_node.mjs"}
    ),
    Client("langchain-node", "LangChain (Node)", {"chat": "langchain_node.mjs"}),
    Client("vercel", "Vercel AI SDK (Node)", dict.fromkeys(DIALECTS, "vercel.mjs")),
    Client("anthropic-0", "anthropic (Python) 0.x", {"messages": "anthropic_sdk.py"}),
    Client("anthropic-2", "anthropic (Python) 2.x", {"messages": "anthropic_sdk.py"}),
    Client("anthropic-2-async", "AsyncAnthropic (Python) 2.x", {"messages": "anthropic_async.py"}, "anthropic-2"),
    Client("langchain-anthropic", "LangChain (Python) with Anthropic", {"messages": "langchain_chat.py"}),
    Client("anthropic-node", "@anthropic-ai/sdk (Node)", {"messages": "anthropic_node.mjs"}),
]


def command(client: Client, dialect: str, folder: Path) -> list[str]:
    """What starts a client's driver; makes its environment in `folder` where it is not there yet.

    Raises:
        FileNotFoundError: this machine has no npm.
        subprocess.CalledProcessError: the package registry did not give what is pinned.
    """
    return with_node(client, dialect, folder) if client.runs_on_node else with_python(client, dialect, folder)


def with_python(client: Client, dialect: str, folder: Path) -> list[str]:
    pins = PINNED / f"{client.environment}.txt"
    place = folder / f"{client.environment}-{digest(sys.version.encode(), pins.read_bytes())}"
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(place)])
        run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "-r", str(pins)])
        (place / "complete").touch()
    return [str(python), str(client.driver(dialect))]


def with_node(client: Client, dialect: str, folder: Path) -> list[str]:
    """The drivers lie beside the packages, for Node looks for packages where a script is. Node itself is pinned, too."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not on this machine")
    pins = [PINNED / client.environment / name for name in ("package.json", "package-lock.json")]
    place = folder / f"{client.environment}-{digest(*(pin.read_bytes() for pin in pins))}"
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for pin in pins:
            shutil.copy(pin, place)
        run([npm, "ci", "--silent", "--no-audit", "--no-fund", "--prefix", str(place)])
        (place / "complete").touch()
    shutil.copytree(DRIVERS, place / "drivers", dirs_exist_ok=True)
    return [
        str(place / "node_modules" / "node" / "bin" / "node"),
        str(place / "drivers" / dialect / client.drivers[dialect]),
    ]


def run(words: list[str]) -> None:
    subprocess.run(words, check=True, timeout=MAKING_SECONDS, stdin=subprocess.DEVNULL)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
