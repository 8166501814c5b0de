"""Facts: what is found in a text, and what a shorter telling lost."""
# ruff: noqa: RUF001 - the punctuation of other scripts is meant

import time

import pytest
from hypothesis import example, given

from memory.digest.facts import facts, missing_facts
from memory.digest.prose import is_telling, sentences
from tests.memory.digest.words import texts


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("My user ID is amelia_sanchez_4739.", "amelia_sanchez_4739"),
        ("reservation **3FRNFB** for you", "3FRNFB"),
        ("flight HAT028, seat 12A", "HAT028"),
        ("open src/main/java/App.java:12 now", "src/main/java/App.java:12"),
        ("see `README.md`.", "README.md"),
        ("under /etc/hosts.d/main", "/etc/hosts.d/main"),
        ("at https://x.test/a?b=1 it", "https://x.test/a?b=1"),
        ("write to a.b+c@mail.example.com!", "a.b+c@mail.example.com"),
        ("costs $1,200.50 now", "$1,200.50"),
        ("costs 300 EUR now", "300 EUR"),
        ("weighs 12 kg", "12 kg"),
        ("took 35ms", "35ms"),
        ("on 2024-05-21 at noon", "2024-05-21"),
        ("by May 15, 2024 at the latest", "May 15, 2024"),
        ("since 3 March 2021 it", "3 March 2021"),
        ("needs v1.2.3 of it", "v1.2.3"),
        ("raised ValueError there", "ValueError"),
        ("calls mapper.readValue twice", "mapper.readValue"),
        ("set maxRetries to", "maxRetries"),
        ("with Amelia Sanchez there", "Amelia Sanchez"),
        ("we met Melanie there, and", "Melanie"),
        ("from MCO to CLT", "MCO"),
        ('he said "hello there" twice', "hello there"),
        ("We must not ship on Friday.", "We must not ship on Friday."),
        ("Wir fahren nicht nach Rom.", "Wir fahren nicht nach Rom."),
        ("他们决定更换屋顶。", "他们决定更换屋顶。"),
        ("编号是AB-1234号", "AB-1234"),
    ],
)
def test_a_fact_is_found(text, fact):
    assert fact in facts(text)


@pytest.mark.parametrize("text", ["", "the cat sat on the mat", "either and/or both", "It rains.", "</div> <br/>"])
def test_plain_words_are_no_facts(text):
    assert facts(text) == ()


@given(texts)
def test_facts_come_once_each(text):
    found = facts(text)

    assert len(set(found)) == len(found)


@given(texts)
@example("the the the the the the the src/main/App.java . ```\n not")
def test_a_text_lacks_none_of_its_own_facts(text):
    assert missing_facts(text, text) == ()


@pytest.mark.parametrize(
    ("original", "shorter", "missing"),
    [
        ("Pay $1,200 by 2024-05-21.", "A payment is due by 2024-05-21.", ("$1,200",)),
        ("Pay $1,200 by 2024-05-21.", "$1200, due 2024-05-21", ()),
        ("They will not cancel.", "They will cancel.", ("They will not cancel.",)),
        ("预订不能更改。", "关于预订：不能更改。", ()),
        ("预订不能更改。", "预订能更改。", ("预订不能更改。",)),
        ("No rain is expected.", "Rain is expected.", ("No rain is expected.",)),
        ("The customer does not want insurance.", "No insurance wanted by the customer.", ()),
        ("open src/App.java", "open src/app.java", ()),
        ("open src/App.java", "open the app", ("src/App.java",)),
    ],
)
def test_a_summary_is_checked_for_values_and_denials(original, shorter, missing):
    assert missing_facts(original, shorter) == missing


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Dr. No came at 3.30 p.m. yesterday. He left!", ["Dr. No came at 3.30 p.m. yesterday.", "He left!"]),
        ("- one\n- two\n\n# Three", ["- one", "- two", "# Three"]),
        ("今天下雨。我们不去。好吗？", ["今天下雨。", "我们不去。", "好吗？"]),
        ("这是「真的。」对吧！", ["这是「真的。」", "对吧！"]),
        ("هل تسمع؟ نعم.", ["هل تسمع؟", "نعم."]),
        ("a long line that was wrapped by somebody's editor here\nand goes on. Next.",
         ["a long line that was wrapped by somebody's editor here and goes on.", "Next."]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_sentences_of_any_script_are_split(text, parts):
    assert sentences(text) == parts


@pytest.mark.parametrize(
    "text", ["I don’t know.", "You can't.", "It is no longer so.", "We agreed.", "Use tabs instead."]
)
def test_denials_and_decisions_are_told_apart_from_the_rest(text):
    assert is_telling(text)
    assert not is_telling("The weather is fine today.")


@pytest.mark.parametrize(
    "unit",
    ["1.", "«", "“x", "Aa ", "Mr. ", "a@", "aA", "a(", "x-1", "http://", "Jan ", "你好。", "$ 1,", "\ud800"],
)
def test_the_time_grows_no_faster_than_the_text(unit):
    """Quadratic code would take 64 times as long for 8 times the text; caches and noise are given a factor of 3."""

    def seconds(chars):
        text = unit * (chars // len(unit))
        runs = []
        for _ in range(3):
            start = time.process_time()
            missing_facts(text, "")
            runs.append(time.process_time() - start)
        return min(runs)

    small, large = seconds(25_000), seconds(200_000)

    assert large < 24 * max(small, 0.002)
