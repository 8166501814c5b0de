"""Requests that schemathesis draws from our own document: no 5xx, and every answer is as the document says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.rest.table import ENDPOINTS

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LABELS = [
    (e.operation.method, f"/memory-manager/{e.operation.path}")
    for e in ENDPOINTS
    if e.operation.path not in ("events", "import")
]
DRAWN = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def schema(house):
    proxy, _ = house
    return schemathesis.openapi.from_url(f"{proxy.url}/memory-manager/openapi.json")


@pytest.mark.parametrize(("method", "path"), LABELS, ids=[" ".join(label) for label in LABELS])
def test_whatever_is_asked_the_answer_is_as_the_document_says(house, schema, method, path):
    proxy, _ = house
    operation = schema[path][method]
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @DRAWN
    @given(st.one_of(right, wrong))
    def ask(case):
        case.query.pop("wait", None)  # nobody answers here
        case.call_and_validate(
            base_url=proxy.url, headers={"authorization": "Bearer sk-drawn"}, checks=CHECKS, timeout=60
        )

    ask()
