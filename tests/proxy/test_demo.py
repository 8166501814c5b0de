"""`infold demo`: it needs nothing, leaves nothing behind, and its provider knows only what it is given."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from rich.console import Console

from proxy.demo.provider import UNKNOWN, PrefixCache, Provider, read, serving
from proxy.demo.run import is_right
from proxy.demo.show import Answered, Said, View, Window, closing, picture
from proxy.demo.story import Question, Story, tell

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
SEEDS = range(12)


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary folder to look into afterwards; other users may pass, because the database can be one."""
    folder = Path(tempfile.mkdtemp(prefix="demo-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(place: Path, *options: str) -> "subprocess.Popen[str]":
    """The command, among settings of a user's that it must not touch."""
    settings = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "INFOLD_PORT": "1", "OPENAI_API_KEY": "sk-mine"}
    return subprocess.Popen(
        [sys.executable, "-m", "proxy.cli", "demo", *options],
        cwd=ROOT,
        env=os.environ | settings | {"TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def running_in(place: Path) -> list[str]:
    """Commands of living processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(place) in command:
                found.append(command)
    return found


def test_the_whole_demo_answers_every_question_from_messages_quoted_back_and_leaves_nothing(place: Path) -> None:
    process = start(place, "--fast", "--seed", "5")
    printed, _ = process.communicate(timeout=500)

    assert process.returncode == 0, printed
    assert "8 of 8 questions answered" in printed
    assert " 0 with the newest messages alone" in " ".join(printed.split())
    assert "400 context_length_exceeded" in printed, "the provider alone refuses such a prompt"
    windows = re.search(r"conversation: ([\d.]+) windows", printed)
    assert windows
    assert float(windows[1]) > 10
    largest = re.search(r"largest prompt had ([\d,]+) of 8,192", " ".join(printed.split()))
    assert largest
    assert int(largest[1].replace(",", "")) <= 8_192
    assert running_in(place) == []
    assert list(place.iterdir()) == []


def test_ctrl_c_stops_the_demo_and_all_it_started(place: Path) -> None:
    process = start(place, "--fast")
    assert process.stdout is not None
    for line in process.stdout:
        if "request" in line:
            break
    assert running_in(place), "it runs by now"

    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=240)

    assert process.returncode == 1
    assert "infold: stopped" in printed
    assert "Traceback" not in printed
    wait_until_gone(place)
    assert list(place.iterdir()) == []


def wait_until_gone(place: Path) -> None:
    deadline = time.monotonic() + 60
    while running_in(place):
        assert time.monotonic() < deadline, running_in(place)
        time.sleep(0.05)


# The provider.


def messages_of(story: Story) -> list[Json]:
    return [story.system, *(message for turn in story.turns for message in (*turn.adds, turn.reply))]


def asked(question: Question) -> Json:
    return {"role": "user", "content": question.ask}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_provider_answers_where_the_evidence_stands_in_the_prompt(seed: int) -> None:
    story = tell(seed)
    everything = messages_of(story)

    assert all(is_right(read([*everything, asked(question)]), question) for question in story.questions)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_provider_does_not_know_without_the_evidence(seed: int) -> None:
    story = tell(seed)
    later = messages_of(story)[1 + 2 * story.opening_turns :]

    assert {read([*later, asked(question)]) for question in story.questions} == {UNKNOWN}


def test_the_provider_says_what_the_prompt_says_and_not_what_the_story_said() -> None:
    story = tell(0)
    question = next(q for q in story.questions if "hut" in q.ask)
    (code,) = question.expects
    prompt = [{"role": "user", "content": "The hut on Langholm has a key box, and 0000 opens it."}, asked(question)]

    assert "0000" in read(prompt)
    assert code not in read(prompt)


def test_the_provider_names_the_id_under_which_it_read_a_quoted_message() -> None:
    block = (
        "<earlier-messages id=1a2b3c4d>\nQuoted from earlier in this conversation.\n\n"
        "[#abcdefgh] message 4\nassistant: Noted.\n\n"
        "[#k3f2x2ab] message 7\nuser: Good. The hut on Langholm has a key box, and 1234 opens it.\n"
        "</earlier-messages id=1a2b3c4d>"
    )
    ask = {"role": "user", "content": "How do we get at the key in the box of the hut on Langholm?"}

    answer = read([{"role": "user", "content": block}, ask])

    assert answer == "You told me: “The hut on Langholm has a key box, and 1234 opens it.” [#k3f2x2ab]"


def test_the_provider_refuses_what_is_longer_than_its_window() -> None:
    provider = Provider([], 300, "o200k_base")
    with serving(provider) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="sk-demo", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 300 tokens"):
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "tide " * 400}])
        answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Which tide?"}])

    assert answer.choices[0].message.content == UNKNOWN


def test_the_cache_holds_the_longest_beginning_in_whole_steps() -> None:
    cache = PrefixCache()

    assert cache.read([b"a", b"b"], [1_000, 500]) == 0
    assert cache.read([b"a", b"b", b"c"], [1_000, 500, 90]) == 1_408  # 11 steps of 128
    assert cache.read([b"a", b"x", b"c"], [1_000, 500, 90]) == 0, "1,000 tokens are too few for a cache"
    assert cache.read([b"ab", b"c"], [1_500, 90]) == 0, "parts are not run together"


# The story and the picture.


def test_a_story_is_the_same_for_a_seed_and_another_for_another() -> None:
    assert tell(4) == tell(4)
    assert tell(4).questions != tell(5).questions


def test_every_call_has_its_result_next() -> None:
    messages = messages_of(tell(1))
    for call, result in pairwise(messages):
        if call.get("tool_calls"):
            assert result["tool_call_id"] == call["tool_calls"][0]["id"]
        else:
            assert result["role"] != "tool"


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (200, 60)])
def test_the_picture_fits_the_terminal(size: tuple[int, int]) -> None:
    width, height = size
    window = Window(8_192, front=400, digest=700, tail=900, block=1_500, new=4_000)
    feed = tuple(Said(who, "words " * 80) for who in ("user", "assistant", "tool", "infold")) * 6
    view = View(window, 280, 140, "week 5, Friday", 48_000, 14_952_727, 1_347_487, feed=feed, levels=(7_500,) * 300)
    console = Console(width=width, height=height, record=True, file=io.StringIO())

    lines = console.render_lines(picture(view, min(width, 110), height), pad=False)

    assert len(lines) <= height


def test_the_closing_words_show_ids_as_they_are() -> None:
    one = Answered("Who?", "She.", True, "[#k3f2x2ab] message 7, week 1, Monday", UNKNOWN, False, True)
    view = View(Window(8_192), 280, 280, usd_direct=10.0, usd_infold=2.0, priced_as="gpt-4o")
    console = Console(width=110, record=True, file=io.StringIO())

    console.print(closing(view, [one], 110))
    printed = console.export_text()

    assert "[#k3f2x2ab]" in printed
    assert "1 of 1 questions answered" in printed
    assert "80% less" in printed
