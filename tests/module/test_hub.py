"""Models on the Hugging Face Hub, without the network: the folder, the cache, and what is sent."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import replayml


class Net(replayml.Module):
    """A small model with a size that the input tells."""

    def __init__(self, width: int = 5) -> None:
        self.hidden = replayml.Layer(nn.Linear, None, width)
        self.drop = replayml.Layer(nn.Dropout, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, width)."""
        result: Tensor = self.drop(self.hidden(x))
        return result


class Other(replayml.Module):
    """Another model."""


X = torch.ones(2, 3)


def net() -> Any:
    """Return a built model."""
    return Net(width=4).build(X)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Assert that two models have the same weights."""
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_pretrained_folder(tmp_path: Path) -> None:
    """config.json is the recipe, model.safetensors has the weights, and the folder gives the model back."""
    model, folder = net(), tmp_path / "net"
    assert model.save_pretrained(folder) is None
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert replayml.Recipe.from_json((folder / "config.json").read_text()) == model.recipe()
    again = Net.from_pretrained(folder)
    assert not again.training
    assert_same(again, model)
    assert replayml.load(folder).training
    assert_same(replayml.load(folder), model)
    assert_same(replayml.load(folder / "model.safetensors"), model)


def test_the_model_card(tmp_path: Path) -> None:
    """The card says how to load the model; one that is there already stays."""
    model = net()
    model.save_pretrained(tmp_path / "net")
    card = (tmp_path / "net" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: replayml\n")
    assert "A PyTorch model with 16 parameters" in card
    assert f"import {__name__}  # where Net stands" in card
    assert 'from_pretrained("net")' in card
    (tmp_path / "net" / "README.md").write_text("my own")
    model.save_pretrained(tmp_path / "net")
    assert (tmp_path / "net" / "README.md").read_text() == "my own"


def test_what_is_wrong_with_a_pretrained_folder(tmp_path: Path) -> None:
    """Another class, an unbuilt model, an unknown option and a changed recipe are refused, each with what to do."""
    net().save_pretrained(tmp_path / "net")
    with pytest.raises(replayml.CheckpointError, match=r"holds a Net, which is no Other. Load it with Net.from_pre"):
        Other.from_pretrained(tmp_path / "net")
    with pytest.raises(replayml.NotBuiltError, match="has no weights yet"):
        Net().save_pretrained(tmp_path / "unbuilt")
    with pytest.raises(TypeError, match="private only with push_to_hub=True"):
        net().save_pretrained(tmp_path / "net", private=True)
    config = tmp_path / "net" / "config.json"
    config.write_text(config.read_text().replace('"width":4', '"width":5'))
    with pytest.raises(replayml.RecipeError, match=r"not the recipe that the weights were saved with.*model.safeten"):
        Net.from_pretrained(tmp_path / "net")
    config.unlink()
    with pytest.raises(replayml.RecipeError, match=r"missing-file.*config.json"):
        Net.from_pretrained(tmp_path / "net")


def test_what_was_downloaded_before_is_loaded_without_the_network(tmp_path: Path) -> None:
    """A model in the cache of the Hub's own client is loaded by its name and its revision."""
    pytest.importorskip("huggingface_hub")
    model, commit = net(), "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--someone--net"
    model.save_pretrained(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        again = Net.from_pretrained("someone/net", cache_dir=tmp_path, local_files_only=True, revision=revision)
        assert_same(again, model)
    with pytest.raises(Exception, match=r"local|offline|cache"):
        Net.from_pretrained("someone/other", cache_dir=tmp_path, local_files_only=True)


def test_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """push_to_hub makes the repository and sends the three files of save_pretrained in one commit."""
    hub = pytest.importorskip("huggingface_hub")
    sent: dict[str, Any] = {}

    def create_repo(self: Any, repo_id: str, **options: Any) -> Any:
        sent["created"] = (repo_id, options)
        return hub.RepoUrl(f"https://huggingface.co/someone/{repo_id}")

    def upload_folder(self: Any, *, folder_path: Path, **options: Any) -> str:
        sent["uploaded"] = options
        shutil.copytree(folder_path, tmp_path / "sent", dirs_exist_ok=True)
        return "https://huggingface.co/someone/net/commit/1"

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    model = net()
    assert model.push_to_hub("net", private=True, branch="dev").endswith("commit/1")
    assert sent["created"] == ("net", {"private": True, "exist_ok": True})
    assert (sent["uploaded"]["repo_id"], sent["uploaded"]["revision"]) == ("someone/net", "dev")
    assert_same(Net.from_pretrained(tmp_path / "sent"), model)
    assert 'from_pretrained("net")' in (tmp_path / "sent" / "README.md").read_text()
    address = model.save_pretrained(tmp_path / "net", push_to_hub=True, commit_message="First.")
    assert address.endswith("commit/1")
    assert sent["uploaded"]["commit_message"] == "First."


def test_the_hub_itself_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without huggingface_hub, what talks to the Hub names the extra."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"from_pretrained talks .*pip install 'replayml\[hub\]'"):
        Net.from_pretrained("someone/something")
    with pytest.raises(ModuleNotFoundError, match=r"push_to_hub talks .*pip install 'replayml\[hub\]'"):
        net().push_to_hub("someone/something")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Files of another library, and a model of `save`, are refused and stay; an own model and a git clone do not."""
    folder = tmp_path / "theirs"
    for name, content in (("config.json", '{"model_type": "bert"}'), ("model.safetensors", "precious")):
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(replayml.RecipeError, match=rf"holds a {name} of another library.*Save to another folder"):
            net().save_pretrained(folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == content
        shutil.rmtree(folder)
    net().save(folder)
    with pytest.raises(replayml.RecipeError, match=r"a model that save\(\) wrote"):
        net().save_pretrained(folder)
    own = tmp_path / "own"
    (own / ".git").mkdir(parents=True)
    net().save_pretrained(own)
    (own / "config.json").write_text(replayml.Sequential().recipe().to_json())  # as a killed save leaves it
    model = net()
    model.save_pretrained(own)
    assert_same(replayml.load(own), model)
    with pytest.raises(replayml.RecipeError, match="something else than a model"):
        net().save(own)
