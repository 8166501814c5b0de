"""What the tests of digests share: the real tokenizer and texts that break things."""

import re

from hypothesis import strategies as st

from memory.tokens import Counter

COUNTER = Counter()


def count(text: str) -> int:
    return COUNTER.text(text, "cl100k_base")


WORDS = re.findall(
    r"\S+",
    "the flight is not booked we decided to switch must ann_lee_42 HAT045 $1,200 2024-05-21 src/main/App.java Amelia"
    " Sanchez 取消しない。 预订不能更改。 Привет не ```java { } [ ] \" ' . ! ? ERROR 12:00:01",
)
BREAKS = ["```\n", "\n", "\n\n", "", "\x00", "\ud800"]

texts = st.one_of(
    st.lists(st.sampled_from([*WORDS, *BREAKS]), max_size=200).map(" ".join),
    st.text(st.characters(exclude_categories=()), max_size=400),
    st.text("a1.,\"'`({[<:@/\\\n #*x", max_size=400),
)
