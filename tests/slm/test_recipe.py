"""A recipe says all that is needed to train an adapter again, and refuses what makes no sense."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.errors import InvalidRequest
from memory.slm.recipe import Bias, Device, Precision, Quantization, Recipe, Task, recipe_of

RECIPES = st.builds(
    Recipe,
    r=st.integers(1, 256),
    alpha=st.floats(1, 100),
    learning_rate=st.floats(0, 1),
    target_modules=st.sampled_from([("q_proj", "v_proj"), ("all-linear",)]),
    precision=st.sampled_from(Precision),
    bias=st.sampled_from(Bias),
    device=st.sampled_from(Device),
    quantization=st.sampled_from(Quantization),
    tasks=st.sampled_from([(Task.ANSWER,), (Task.ANSWER, Task.FACTS), (Task.RAW,)]),
    gradient_checkpointing=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@given(RECIPES)
def test_a_recipe_comes_back_from_json_as_it_was(recipe):
    assert recipe_of(recipe.text()) == recipe


def test_what_is_not_said_is_the_default():
    assert recipe_of({"r": 16}) == Recipe(r=16)
    assert recipe_of("{}") == Recipe()


@pytest.mark.parametrize(
    ("given_", "field"),
    [
        ({"r": 0}, "r"),
        ({"r": True}, "r"),
        ({"r": 8.0}, "r"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1}, "dropout"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": -1e-4}, "learning_rate"),
        ({"replay_share": 0.95}, "replay_share"),
        ({"precision": "fp8"}, "precision"),
        ({"quantization": "2bit"}, "quantization"),
        ({"device": "tpu"}, "device"),
        ({"bias": "some"}, "bias"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["all-linear", "q_proj"]}, "target_modules"),
        ({"target_modules": 3}, "target_modules"),
        ({"epochs": 0, "max_steps": 0}, "max_steps"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["replay"]}, "tasks"),
        ({"tasks": ["dance"]}, "tasks"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing"),
        ({"learnig_rate": 1e-4}, "learnig_rate"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(given_, field):
    with pytest.raises(InvalidRequest) as refused:
        recipe_of(given_)
    assert refused.value.field == field
    assert field in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "8", '"r"'])
def test_what_is_no_json_object_is_no_recipe(text):
    with pytest.raises(InvalidRequest, match="JSON"):
        recipe_of(text)


def test_a_single_name_may_stand_for_a_list():
    recipe = recipe_of({"target_modules": "all-linear", "tasks": "summarise"})
    assert recipe.target_modules == ("all-linear",)
    assert json.loads(recipe.text())["tasks"] == ["summarise"]
