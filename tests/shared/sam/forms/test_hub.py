"""Models of the Hugging Face Hub are found by their ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import read_weights
from sum_factory.shared.sam.forms import hub
from weight_files import TINY, State, folder_of


@pytest.fixture
def model_on_the_hub(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of ``huggingface_hub`` with one model, owner/sam, and no connection; return the model's folder."""
    from huggingface_hub import constants

    repository, commit = tmp_path / "hub" / "models--owner--sam", "0123456789abcdef0123456789abcdef01234567"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    folder_of("model-1-of-2.safetensors", "model-2-of-2.safetensors")(state, folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("given", ["owner/sam", "hf://owner/sam", "owner/sam@main"])
def test_model_of_the_hub_is_found_by_its_id(given: str, model_on_the_hub: Path, state: State) -> None:
    read = read_weights(given)
    assert read.path == model_on_the_hub
    assert all(torch.equal(read.state[name], value) for name, value in state.items())


def test_folder_of_that_name_goes_before_the_hub(model_on_the_hub: Path, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    with pytest.raises(CheckpointError, match=r"owner/sam: no such file"):
        read_weights("owner/sam")


@pytest.mark.parametrize("given", ["nobody/sam", "hf://nobody/sam"])
def test_model_that_cannot_be_had_is_told_of_as_neither_here_nor_there(given: str, model_on_the_hub: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{given}: neither a file or folder here, nor a model on the Hugging"):
        read_weights(given)


@pytest.mark.parametrize(
    ("given", "is_id"),
    [
        ("facebook/sam-vit-base", True),
        ("facebook/sam-vit-base@v1.0", True),
        ("weights/sam_vit_b_01ec64.pth", False),
        ("weights/model.safetensors", False),
        ("/weights/sam", False),
        ("runs/sum/last", False),
        ("sam_vit_b.pth", False),
    ],
)
def test_ids_are_told_from_paths(given: str, is_id: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id(given) is is_id


def test_hub_answers_are_told_by_what_they_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        raise OSError("Connection refused")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"owner/sam@v2: could not be fetched .* \(Connection refused\)"):
        read_weights("owner/sam@v2")
    assert asked == [("config.json", "v2")]
    with pytest.raises(CheckpointError, match="no id on the Hugging Face hub; expected owner/name"):
        read_weights("hf://sam")


def test_all_files_are_of_the_commit_of_the_first(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "f" * 40
    folder = tmp_path / "cache" / commit
    folder.mkdir(parents=True)
    folder_of("pytorch_model.bin")(state, folder)
    asked: list[tuple[str, str | None]] = []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        if not (folder / name).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert read_weights("owner/sam").architecture is TINY
    assert asked[0] == ("config.json", None)
    assert {revision for _, revision in asked[1:]} == {commit}
