"""A folder from elsewhere: what can run code, lies outside or is not whole is refused by its name."""

import json
from pathlib import Path

import pytest

from memory.slm.folder import INDEX, checked_files, checked_model
from memory.slm.header import BadWeights
from tests.slm.making import hub_folder, safetensors


def test_a_whole_folder_tells_how_many_weights_it_has(tmp_path: Path) -> None:
    assert checked_model(hub_folder(tmp_path)) == 40


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "a.PT", "x.pkl", "deep/er/model.ckpt"])
def test_a_pickle_anywhere_in_it_is_refused(tmp_path: Path, name: str) -> None:
    """`pickle.load` runs what its maker wanted; safetensors beside it do not make it safe."""
    file = hub_folder(tmp_path) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(BadWeights, match=rf"{Path(name).name} is a pickle.*only safetensors"):
        checked_model(tmp_path)


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    hub_folder(tmp_path, model__safetensors=b"\x80\x04" + b"c" * 100)
    with pytest.raises(BadWeights, match="safetensors"):
        checked_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_config.json", "more"])
def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path, name: str) -> None:
    inside, outside = hub_folder(tmp_path / "model"), hub_folder(tmp_path / "outside")
    (inside / "twin.json").symlink_to("config.json")
    assert checked_model(inside) == 40
    (inside / name).unlink(missing_ok=True)
    (inside / name).symlink_to(outside / name if (outside / name).exists() else outside)
    with pytest.raises(BadWeights, match=rf"{name} is a link that leads out of its folder"):
        checked_model(inside)


def test_what_begins_with_a_dot_is_left_alone(tmp_path: Path) -> None:
    cache = hub_folder(tmp_path) / ".cache"
    cache.mkdir()
    (cache / "half.bin").write_bytes(b"")
    assert len(checked_files(tmp_path)) == 3


def indexed(folder: Path, names: object) -> Path:
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    return folder


def test_the_parts_that_an_index_names_are_the_model(tmp_path: Path) -> None:
    """Mistral's folder has all weights once more, in a file that the index does not name."""
    hub_folder(tmp_path, consolidated__safetensors=safetensors(((100,),)))
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    (tmp_path / "model-2.safetensors").write_bytes(safetensors(((2,),)))
    indexed(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"})
    assert checked_model(tmp_path) == 42


@pytest.mark.parametrize(
    "names",
    [{"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": "sub/model.safetensors"}, {"a": "x.bin"}, {"a": 1}],
    ids=str,
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, names: object) -> None:
    with pytest.raises(BadWeights, match=r"model.safetensors.index.json names .*, which is no file of safetensors in"):
        checked_model(indexed(hub_folder(tmp_path), names))


@pytest.mark.parametrize("names", [{}, [], None, "x"], ids=str)
def test_an_index_that_names_nothing_is_refused(tmp_path: Path, names: object) -> None:
    with pytest.raises(BadWeights, match="has no weight_map"):
        checked_model(indexed(hub_folder(tmp_path), names))


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    hub_folder(tmp_path)
    with pytest.raises(BadWeights, match=rf"{tmp_path} lacks model-7.safetensors, which {INDEX} names"):
        checked_model(indexed(tmp_path, {"a": "model-7.safetensors"}))


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    hub_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BadWeights, match=r"has no tokenizer; copy tokenizer.json there"):
        checked_model(tmp_path)


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    (hub_folder(tmp_path) / "config.json").write_text("[" * 100_000)
    with pytest.raises(BadWeights, match=r"config\.json has no JSON"):
        checked_model(tmp_path)


def test_a_folder_that_is_no_models_is_not_walked_forever(tmp_path: Path) -> None:
    for number in range(10_001):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(BadWeights, match="more than 10,000 files; is that a model's folder"):
        checked_files(tmp_path)
