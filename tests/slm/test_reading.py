"""SmolLM2, in llama.cpp, reads what the memory finds: what it says is taken only where the passages hold it."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from memory.ask import ANSWER_TOKENS, ENCODING, Ask, reads_together, tokens_at_most
from memory.gather import Gather
from memory.grounded import ungrounded
from memory.identify import place
from memory.items import Items
from memory.models import ModelTable
from memory.nouns import NoModel
from memory.prompts import reading
from memory.settings import Recall, Settings
from memory.slm.client import ModelAt
from memory.slm.weights import Weights
from tests.clock import Hands
from tests.conversations import COUNTER, TENANT
from tests.memory.vectors import WordVectors

pytest.importorskip("xllamacpp")

HOME = place(TENANT, "home")
WINDOW = 2_048
ENGINE = f"""
import sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.ui = sys.argv[1], {WINDOW}, 1, False
settings.hostnames, settings.port, settings.cpuparams.n_threads = ["127.0.0.1"], 0, 1
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
NOTES = (
    "The ferry to Skarholm leaves at 07:40 from pier 9.",
    "Ada Quill keeps the spare key of the boat house in a blue teapot.",
    "Mooring fees rise to 31 euros on 8 March 2024.",
    "The harbour dog is called Biscuit and barks at seagulls.",
    "Captain Wrenfield lost his left glove in Lisbon.",
)
QUESTIONS = (
    "When does the ferry to Skarholm leave?",
    "Where is the spare key of the boat house?",
    "When do mooring fees rise?",
    "What is the name of the harbour dog?",
    "What did Captain Wrenfield lose?",
)


@pytest.fixture(scope="module")
def smollm2_at(smollm2: Weights) -> Iterator[ModelAt]:
    command = [sys.executable, "-c", ENGINE, str(smollm2.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as engine:
        assert engine.stdout is not None
        url = engine.stdout.readline().decode().strip()
        assert url.startswith("http://127.0.0.1:")
        yield ModelAt(f"{url}/v1", smollm2.name, seconds=240)
        engine.terminate()


@pytest.fixture
async def ask(pool, smollm2_at):
    items = Items(pool, COUNTER, ModelTable(), Settings(), Hands(), WordVectors())
    for note in NOTES:
        await items.add(HOME, "gpt-4o", note, "note")

    def count(text):
        return COUNTER.text(text, ENCODING)

    return Ask(
        Gather(pool, items, None, count, Recall().floor), count, smollm2_at, together=reads_together(smollm2_at.model)
    )


async def test_it_answers_some_questions_and_says_nothing_that_no_source_says(ask):
    found = {question: await ask.ask(TENANT, question) for question in QUESTIONS}

    assert sum(answer.by == "model" for answer in found.values()) >= 2, found
    for answer in found.values():
        assert answer.answer
        assert ungrounded(answer.answer, [source.text for source in answer.sources]) == ()
        assert answer.reason in (None, *NoModel.__args__)
    texts = [answer.answer for answer in found.values()]
    right = zip(("07:40", "teapot", "March", "Biscuit", "glove"), texts, strict=True)
    assert sum(word in (text or "") for word, text in right) >= 4, texts


async def test_the_window_is_the_engines_and_its_own_count_of_a_prompt_is_below_ours(smollm2_at, ask):
    assert await smollm2_at.window() == WINDOW
    code = "def f(x: int) -> dict[str, int]:\n    return {k: v**2 for k, v in zip('abc', range(x))}\n" * 4
    strange = (
        "Die Überprüfung: 今日は天気がいいですね。 Сегодня хорошая погода, 北京的天气也很好。 a1b2-c3d4 0x9f3c" * 2
    )
    for passages in (NOTES, [code] * 3, [strange] * 3):
        messages = reading("What is that?", passages)
        ours = sum(tokens_at_most(m["content"], lambda text: COUNTER.text(text, ENCODING)) + 8 for m in messages)
        said = await smollm2_at.complete(messages, 1)
        assert said.input_tokens <= ours
        assert said.input_tokens > ours / 4
    assert (await ask.ask(TENANT, f"What of {'the ferry ' * 300}?")).answer  # and a long question is no error
    assert ANSWER_TOKENS < WINDOW
