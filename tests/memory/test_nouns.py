"""What programs see is plain data: frozen, and of one shape in Python and in JSON."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

import memory
from memory import nouns
from memory.nouns import NIL, FoundItem, ItemForm, ItemStatus, MemoryItem, Passage, TaskStatus, utc_now
from tests.clock import NOON, Hands

ITEM = MemoryItem(
    id="i", session_id="s", content_type="note", full_content=None, compressed_summary="c", token_count=4,
    compressed_token_count=1, compression_ratio=0.25, is_active=True, priority=0, access_count=0, last_accessed=NOON,
    created_at=NOON, updated_at=NOON, metadata={"a": [1]},
)  # fmt: skip
STRUCTS = [
    v for v in vars(nouns).values() if isinstance(v, type) and issubclass(v, msgspec.Struct) and v is not msgspec.Struct
]


def test_an_item_becomes_a_dictionary_and_json():
    plain = msgspec.to_builtins(ITEM)
    assert (plain["full_content"], plain["metadata"], plain["form"]) == (None, {"a": [1]}, "full")
    assert msgspec.json.decode(msgspec.json.encode(ITEM), type=MemoryItem) == ITEM


def test_a_found_item_has_all_of_an_item_first():
    found = FoundItem(**msgspec.structs.asdict(ITEM), score=1.0, distance=None, passage=Passage(0, 1, "a"))
    assert list(msgspec.to_builtins(found))[: len(ITEM.__struct_fields__)] == list(ITEM.__struct_fields__)


@pytest.mark.parametrize("struct", STRUCTS)
def test_all_are_frozen_and_can_be_described(struct):
    assert struct.__struct_config__.frozen
    if struct not in (nouns.Place, nouns.Principal):  # these never leave
        msgspec.json.schema(struct)


def test_numbers_of_forms_and_states_are_those_of_the_schema():
    sql = (Path(__file__).parents[2] / "migrations" / "versions" / "0002_memory.sql").read_text()
    for column, members in (("form", ItemForm), ("status", ItemStatus)):
        (line,) = [line for line in sql.splitlines() if line.startswith(f"    {column} ") and "smallint" in line]
        assert line.split("-- ")[1].split(", ") == [member.name.lower() for member in members]
        assert f"between 0 and {len(members) - 1})" in line
    assert ", ".join(f"'{status}'" for status in TaskStatus) in sql
    assert str(NIL) in sql


def test_clocks_are_aware_and_go_only_forward_by_hand():
    assert utc_now().utcoffset() == timedelta(0)
    hands = Hands()
    hands.forward(days=7.5)
    assert hands() == NOON + timedelta(hours=180)


def test_importing_the_package_loads_nothing_until_something_is_used():
    code = "import sys, memory; a = 'memory.nouns' in sys.modules; memory.TaskStatus; print(a, 'memory.nouns' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False True\n"
    )


@pytest.mark.parametrize("name", memory.__all__)
def test_what_the_package_names_is_there(name):
    assert getattr(memory, name).__name__ == name


def test_what_it_does_not_name_is_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        memory.nothing  # noqa: B018
