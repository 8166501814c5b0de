"""What fits is what the arithmetic says: weights, the cache of a full window, and the process around them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.slm.fits import FORMS, LEAST_WINDOW, PROCESS_BYTES, each_form, most_tokens
from memory.slm.machine import Gpu, Machine
from memory.slm.registry import GEMMA_4B, MISTRAL_7B, MODELS, SMOLLM2, LocalModel, kv_bytes, weight_bytes

GB = 10**9
CARD = Gpu("a card", 24 * GB, 25 * GB)


def having(free: int, *cards: Gpu) -> Machine:
    return Machine(free, 2 * free, 2.0, 100 * GB, cards, ())


def test_what_is_needed_is_weights_cache_and_process() -> None:
    found = each_form(SMOLLM2, having(8 * GB), 8_192)
    assert [(fit.engine, fit.form) for fit in found] == [*FORMS]
    q4 = found[0]
    assert q4.needed_bytes == weight_bytes(SMOLLM2, "q4") + kv_bytes(SMOLLM2, 8_192) + PROCESS_BYTES["llamacpp"]
    assert all(fit.fits and fit.window == 8_192 for fit in found)


def test_in_32_bits_the_cache_is_twice_as_wide() -> None:
    *_, bf16, fp32 = each_form(SMOLLM2, having(8 * GB), 8_192)
    assert fp32.cache_bytes == 2 * bf16.cache_bytes == 2 * kv_bytes(SMOLLM2, 8_192)


def test_the_file_that_is_there_stands_first_with_its_own_size() -> None:
    first = each_form(SMOLLM2, having(8 * GB), 8_192, ("mine.gguf", 12_345))[0]
    assert (first.engine, first.form, first.weight_bytes) == ("llamacpp", "mine.gguf", 12_345)


def test_what_does_not_fit_says_with_which_window_it_would() -> None:
    q4, q8, *_ = each_form(MISTRAL_7B, having(7 * GB), 32_768)
    assert not q4.fits
    assert LEAST_WINDOW < q4.window < 32_768
    room = 7 * GB - q4.weight_bytes - PROCESS_BYTES["llamacpp"]
    assert kv_bytes(MISTRAL_7B, q4.window) <= room < kv_bytes(MISTRAL_7B, q4.window + 1)
    assert (q8.fits, q8.window) == (False, 0)


def test_a_gpu_is_for_transformers_and_counted_by_its_own_memory() -> None:
    found = each_form(MISTRAL_7B, having(4 * GB, CARD), 32_768)
    on_card = {fit.form: fit.fits for fit in found if fit.device == "a card"}
    assert on_card == {"4bit": True, "8bit": True, "bf16": True, "fp32": False}
    assert {fit.engine for fit in found if fit.device == "a card"} == {"transformers"}
    assert not any(fit.fits for fit in found if fit.device == "cpu")


@given(st.sampled_from(MODELS), st.integers(-GB, 20 * GB), st.integers(1, 131_072))
def test_the_longest_window_that_fits_is_the_longest(model: LocalModel, room: int, window: int) -> None:
    tokens = most_tokens(model, room, window)
    assert 0 <= tokens <= window
    assert tokens == 0 or kv_bytes(model, tokens) <= room
    if tokens not in (0, window):
        assert kv_bytes(model, tokens + 1) > room
    if tokens == 0:
        assert kv_bytes(model, min(LEAST_WINDOW, window)) > room


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_model_fits_somewhere(model: LocalModel) -> None:
    assert all(fit.fits for fit in each_form(model, having(200 * GB), model.window))


def test_a_window_of_few_tokens_still_may_fit() -> None:
    assert most_tokens(GEMMA_4B, 10 * GB, 16) == 16
