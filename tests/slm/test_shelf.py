"""What lies in the data directory is listed, ours and others', whole and broken."""

import json
from pathlib import Path

import pytest

from memory.slm.registry import MODELS, PHI_2, SMOLLM2
from memory.slm.shelf import described, shelf, size_bytes
from memory.slm.weights import Weights, locate
from tests.slm.making import CONFIG, LLAMA, gguf, hub_folder


def placed(home: Path, name: str, content: bytes) -> Path:
    (home / name).mkdir(parents=True)
    path = home / name / "it.gguf"
    path.write_bytes(content)
    return path


def test_every_known_model_is_listed_where_nothing_is_there(tmp_path: Path) -> None:
    entries = shelf(tmp_path / "nowhere")
    assert [entry.model for entry in entries] == [*MODELS]
    assert not any(entry.weights or entry.problem for entry in entries)


def test_what_is_there_is_listed_and_what_is_broken_says_why(tmp_path: Path) -> None:
    file = placed(tmp_path, "phi-2", gguf())
    own = placed(tmp_path, "my-own", gguf())
    placed(tmp_path, "half", gguf()[:-40])
    (tmp_path / "empty").mkdir()
    (tmp_path / ".fetch-xyz").mkdir()
    listed = {entry.name: entry for entry in shelf(tmp_path)}
    assert listed.keys() - {model.name for model in MODELS} == {"my-own", "half"}
    assert listed["phi-2"].weights == Weights(file, "gguf", PHI_2, "phi-2")
    assert listed["my-own"].weights == Weights(own, "gguf", None, "my-own")
    assert "copied in part" in str(listed["half"].problem)


def test_a_file_describes_its_model(tmp_path: Path) -> None:
    weights = locate(str(placed(tmp_path, "own", gguf())), tmp_path)
    model = described(weights)
    assert model is not None
    assert (model.name, model.window, model.layers, model.kv_heads, model.head_size) == ("it", 2_048, 2, 2, 16)
    assert (model.parameters, model.embedding_parameters, model.template) == (40, 3 * 64, "inside")
    assert size_bytes(weights) == len(gguf())


def test_a_folder_describes_its_model(tmp_path: Path) -> None:
    weights = locate(str(hub_folder(tmp_path / "own")), tmp_path)
    model = described(weights)
    assert model is not None
    assert (model.name, model.window, model.layers, model.kv_heads, model.head_size) == ("own", 2_048, 2, 2, 16)
    assert (model.parameters, model.embedding_parameters, model.template) == (40, 3 * 64, None)
    (weights.path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert (described(weights) or SMOLLM2).template == "inside"


def test_the_text_model_of_a_folder_that_sees_pictures_is_meant(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "own")
    (folder / "config.json").write_text(json.dumps({"vision_config": {}, "text_config": {**CONFIG, "head_dim": 32}}))
    model = described(locate(str(folder), tmp_path))
    assert model is not None
    assert (model.layers, model.head_size) == (2, 32)


@pytest.mark.parametrize(
    "config",
    [{}, {**CONFIG, "num_attention_heads": 0}, {**CONFIG, "num_hidden_layers": "2"}, {**CONFIG, "hidden_size": -64}],
    ids=["empty", "no heads", "text", "negative"],
)
def test_files_that_do_not_say_enough_describe_nothing(tmp_path: Path, config: object) -> None:
    folder = hub_folder(tmp_path / "own")
    (folder / "config.json").write_text(json.dumps(config))
    assert described(locate(str(folder), tmp_path)) is None


def test_a_gguf_file_that_does_not_say_enough_describes_nothing(tmp_path: Path) -> None:
    for lacking in ("general.architecture", "llama.context_length", "llama.block_count"):
        fields = {name: value for name, value in LLAMA.items() if name != lacking}
        assert described(locate(str(placed(tmp_path, lacking, gguf(fields))), tmp_path)) is None


def test_smollm2_describes_itself_as_we_do(smollm2: Weights) -> None:
    """What the registry says, from the file alone."""
    alone = described(Weights(smollm2.path, "gguf", None, "it"))
    assert alone is not None
    for name in "window layers kv_heads head_size parameters embedding_parameters template".split():
        assert getattr(alone, name) == getattr(SMOLLM2, name), name
