"""Settings of learning are read, checked and told well when they are wrong."""

from dataclasses import fields

import pytest

from memory.slm.recipe import Recipe, recipe_of
from proxy.config import ConfigError, load
from proxy.sections import RecipeSection

pytestmark = pytest.mark.usefixtures("no_environment")


def test_every_setting_of_a_recipe_is_one_of_ours_and_the_weights_form_is_that_of_the_model():
    assert {*RecipeSection.model_fields, "quantization"} == {field.name for field in fields(Recipe)}
    assert recipe_of(RecipeSection().model_dump()) == Recipe()


def test_a_recipe_is_read_from_file_and_environment(file, monkeypatch):
    monkeypatch.setenv("INFOLD_SLM__LEARNING__RECIPE__R", "16")
    monkeypatch.setenv("INFOLD_SLM__LEARNING__ENABLED", "true")
    config = load(file("slm: {learning: {trigger: fixed, recipe: {learning_rate: 0.001, bias: null}}}"))
    learning = config.settings.slm.learning
    assert (learning.enabled, learning.trigger) == (True, "fixed")
    assert learning.recipe == {"r": 16, "learning_rate": 0.001}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slm: {learning: {recipe: {r: 0}}}", ["slm.learning.recipe", "r must be"]),
        ("slm: {learning: {recipe: {lerning_rate: 1}}}", ["`slm.learning.recipe.lerning_rate`", "`learning_rate`"]),
        ("slm: {learning: {triger: fixed}}", ["`slm.learning.triger`", "`trigger`"]),
        ("slm: {learning: {trigger: sometimes}}", ["slm.learning.trigger", "'fixed'"]),
        ("slm: {learning: {canary_share: 0}}", ["slm.learning.canary_share"]),
    ],
)
def test_settings_of_learning_are_checked(file, text, words):
    with pytest.raises(ConfigError) as caught:
        load(file(text))
    for word in words:
        assert word in str(caught.value)


def test_answers_may_train_other_models_only_where_the_operator_says_so(file):
    upstreams = (
        "upstreams: {a: {url: 'http://a', models: [m]}, b: {url: 'http://b', models: [n], trainable_outputs: true}}"
    )
    assert load(file(upstreams)).settings.slm.learning.trainable == {"b"}
    both = load(file(f"{upstreams}\ntrainable_outputs: true")).settings.slm.learning.trainable
    assert both == {"b", "default", "local"}
    taken = "upstreams: {local: {url: 'http://a', models: [a]}, local-model: {url: 'http://b', models: [b]}"
    every = load(file(f"{taken}, local-engine: {{url: 'http://c', models: [c]}}}}\ntrainable_outputs: true"))
    assert every.settings.slm.learning.trainable == {"default"}
    assert load().settings.slm.learning.trainable == frozenset()
