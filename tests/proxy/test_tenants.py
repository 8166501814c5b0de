"""A key is a tenant; where it is uncertain whose a request is, it is nobody's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.identify import LOCAL_KEY, PLACEHOLDERS, tenant_id
from proxy.tenants import key_of, session_label, tenant_of

PEPPER = b"p" * 32
LOCAL = tenant_id(PEPPER, LOCAL_KEY)

keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=60).filter(
    lambda key: key.lower() not in PLACEHOLDERS
)


def bearer(key: str | bytes) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + (key if isinstance(key, bytes) else key.encode())


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([bearer("sk-a")], "sk-a"),
        ([(b"authorization", b"bearer sk-a")], "sk-a"),
        ([(b"authorization", b"Bearer  sk-a ")], "sk-a"),
        ([(b"x-api-key", b"sk-a")], "sk-a"),
        ([(b"api-key", b"sk-a")], "sk-a"),
        ([bearer("sk-a"), (b"api-key", b"sk-a")], "sk-a"),
        ([bearer("sk-a"), bearer("sk-a")], "sk-a"),
        ([bearer("sk-a"), bearer("sk-b")], None),
        ([bearer("sk-a"), (b"api-key", b"sk-b")], None),
        ([(b"authorization", b"Basic dTpw")], None),
        ([(b"authorization", b"sk-a")], None),
        ([], None),
    ],
)
def test_the_key_is_read_from_where_clients_put_it(headers, key):
    assert key_of(headers) == key


@given(keys, keys)
def test_a_key_is_a_tenant_and_two_keys_are_two(one, two):
    first, second = tenant_of([bearer(one)], PEPPER, True), tenant_of([bearer(two)], PEPPER, True)
    assert first is not None
    assert (first == second) == (one == two)


@given(keys)
def test_a_key_is_the_same_tenant_on_every_listener(key):
    assert tenant_of([bearer(key)], PEPPER, True) == tenant_of([bearer(key)], PEPPER, False)


@given(keys)
def test_another_pepper_is_another_tenant(key):
    assert tenant_of([bearer(key)], PEPPER, True) != tenant_of([bearer(key)], b"q" * 32, True)


@pytest.mark.parametrize("key", sorted(PLACEHOLDERS))
def test_placeholders_are_local_at_home_and_nobodys_elsewhere(key):
    assert tenant_of([bearer(key)], PEPPER, True) == LOCAL
    assert tenant_of([bearer(key.upper())], PEPPER, True) == LOCAL
    assert tenant_of([bearer(key)], PEPPER, False) is None


EMPTY = {
    "no header": [],
    "empty bearer": [(b"authorization", b"Bearer ")],
    "empty x-api-key": [(b"x-api-key", b"")],
    "spaces": [(b"api-key", b"   ")],
}


@pytest.mark.parametrize("headers", EMPTY.values(), ids=EMPTY)
def test_an_empty_key_is_a_missing_one_and_nobodys_where_others_can_reach_us(headers):
    assert tenant_of(headers, PEPPER, False) is None
    assert tenant_of(headers, PEPPER, True) == LOCAL


@pytest.mark.parametrize(
    "headers",
    [[bearer("sk-a"), bearer("sk-b")], [(b"authorization", b"Basic dTpw")], [(b"authorization", b"Digest x")]],
    ids=["two keys", "basic", "digest"],
)
def test_where_it_is_uncertain_who_asks_it_is_nobody_even_at_home(headers):
    assert tenant_of(headers, PEPPER, True) is None


@given(st.binary(max_size=80))
def test_any_bytes_in_a_key_are_a_tenant_or_nobody(raw):
    found = tenant_of([bearer(raw)], PEPPER, False)
    assert found is None or len(found) == 16


@pytest.mark.parametrize("label", [b"s1", b"a-b_c.d:e", b"x" * 128, b"0"])
def test_a_well_formed_session_id_is_a_label(label):
    assert session_label(label) == label.decode()


@pytest.mark.parametrize("label", [None, b"", b"a b", b"x" * 129, b"a\n", b"'; drop", b"\xff", "é".encode(), b"a/b"])
def test_a_malformed_session_id_is_none(label):
    assert session_label(label) is None
