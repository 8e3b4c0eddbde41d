"""`convert`: old checkpoints, of replayml and of Deeplay, as files that open without unpickling.

``deeplay_components.ckpt`` and ``deeplay_script.ckpt`` were written by Deeplay 0.1.4: a regressor on Deeplay's own
network, varied by selectors, and one on a class of a script. Under "example" each has inputs, and the outputs that
Deeplay gave for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dill
import pytest
import safetensors.torch
import torch
from torch import nn

import replayml
from replayml.cli import legacy
from replayml.cli.report import ExitCode
from replayml.core.errors import RecipeError
from tests.cli.files import mlp, run, run_json, write_checkpoint, write_recipe

HERE = Path(__file__).parent
COMPONENTS = HERE / "deeplay_components.ckpt"
SCRIPT = HERE / "deeplay_script.ckpt"

TRUST = "--i-trust-this-file"

MOVED = """
import replayml
from torch import nn

class Net(replayml.Module):
    def __init__(self, width=4):
        self.hidden = replayml.Layer(nn.Linear, 2, width)
        self.activation = replayml.Layer(nn.ReLU)
        self.out = replayml.Layer(nn.Linear, width, 1)

    def forward(self, x):
        return self.out(self.activation(self.hidden(x)))
"""


def write_legacy(path: Path, model: Any, **more: Any) -> Path:
    """Write an old checkpoint of replayml: the unbuilt application as dill bytes, and its weights."""
    built = model.create(seed=0)
    content = {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": built.state_dict(),
        "hyper_parameters": {legacy.RECIPE_KEY: dill.dumps(model), legacy.ARGS_KEY: (), legacy.KWARGS_KEY: {}},
        **more,
    }
    torch.save(content, path)
    return path


def converted(source: Path, target: Path, **rename: str) -> dict[str, Any]:
    """Convert in this process, as the command does in one of its own."""
    return legacy.convert(source, target, rename).as_data()


def outputs(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the example inputs in a file of Deeplay, and what it gave for them."""
    example = torch.load(path, weights_only=True)["example"]
    return example["x"], example["y"]


# Trust ------------------------------------------------------------------------------------------------------------


def test_nothing_is_opened_without_the_word_of_the_user(tmp_path: Path) -> None:
    """Without ``--i-trust-this-file`` the pickle is not run, nothing is written, and the reason is told."""
    trace = tmp_path / "run.txt"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.write_text, (trace, "run")

    old = write_legacy(tmp_path / "old.ckpt", replayml.Regressor(mlp()))
    content = torch.load(old, weights_only=True)
    content["hyper_parameters"][legacy.RECIPE_KEY] = dill.dumps(Hostile())
    torch.save(content, old)
    found = run_json("convert", old, tmp_path / "new.ckpt")
    assert found["exit_code"] == ExitCode.USAGE
    assert found["error"]["code"] == "not-trusted"
    assert TRUST in found["error"]["message"]
    assert "was not opened" in run("convert", old, tmp_path / "new.ckpt").stderr
    for command in ("inspect", "tree", "verify"):
        assert run_json(command, old)["exit_code"] == ExitCode.REFUSED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.ckpt"]
    found = run_json("convert", old, tmp_path / "new.ckpt", TRUST)
    assert trace.exists()  # the honest twin: with the word of the user it is run, in another process
    assert found["exit_code"] == ExitCode.FAILED
    assert "which tells nothing of how it was made" in found["not_converted"][0]


# Checkpoints of Deeplay -------------------------------------------------------------------------------------------


def test_a_checkpoint_of_deeplay_gives_the_same_outputs(tmp_path: Path) -> None:
    """A network of Deeplay's own classes, with its edits, is converted without Deeplay and predicts the same."""
    new = tmp_path / "new.ckpt"
    found = run_json("convert", COMPONENTS, new, TRUST)
    assert found["exit_code"] == ExitCode.DONE, found
    assert found["not_converted"] == []
    assert {"model", "weights", "optimizer_states"} <= set(found["converted"])
    app: Any = replayml.Application.load_from_checkpoint(new)
    x, y = outputs(COMPONENTS)
    assert torch.equal(app.eval()(x), y)
    assert isinstance(app.loss, nn.L1Loss)  # Deeplay's default, which is not that of replayml
    assert app.new().optimizer.kwargs["lr"] == 3e-3
    assert run_json("verify", new)["fingerprint"] == app.recipe().fingerprint
    optimizer = torch.load(new, weights_only=True)["optimizer_states"]
    assert len(optimizer[0]["state"]) == len(list(app.parameters()))


def test_a_class_of_a_script_is_found_under_its_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--rename`` tells where a class stands now; its settings and its tape come along."""
    (tmp_path / "moved_models.py").write_text(MOVED, encoding="ascii")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = converted(SCRIPT, Path("new.ckpt"), __main__="moved_models")
    assert found["has_structure"], found
    app: Any = replayml.Application.load_from_checkpoint(tmp_path / "new.ckpt")
    x, y = outputs(SCRIPT)
    assert torch.equal(app.eval()(x), y)
    assert app.model.hidden.out_features == 5
    assert isinstance(app.model.activation, nn.Tanh)


def test_what_cannot_be_converted_is_told_and_the_weights_are_kept(tmp_path: Path) -> None:
    """A class that nobody has any more is named with the option that helps; the weights are written alone."""
    text = run("convert", SCRIPT, tmp_path / "told.ckpt", TRUST)
    assert text.exit_code == ExitCode.FAILED
    assert "the weights alone (4 tensors)" in text.stdout
    assert "Not converted:\n  __main__.Net" in text.stdout
    found = converted(SCRIPT, tmp_path / "new.ckpt")
    assert found["converted"] == ["weights"]
    assert not found["has_structure"]
    assert found["model"] == "Regressor(Net(3), optimizer=SGD(lr=0.1), loss=MSELoss())"
    assert "__main__.Net: a class of a script or notebook" in found["not_converted"][0]
    assert "--rename __main__=THAT_MODULE" in found["not_converted"][0]
    written = Path(found["written"])
    assert written == tmp_path / "new.safetensors"
    old = torch.load(SCRIPT, weights_only=True)["state_dict"]
    new = safetensors.torch.load_file(written)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("target", ["no_such_module", "json"])
def test_a_new_name_that_has_no_such_class_is_told(target: str, tmp_path: Path) -> None:
    """Where the renamed module is not there, or lacks the class, that is what is told."""
    found = converted(SCRIPT, tmp_path / "new.ckpt", __main__=target)
    assert not found["has_structure"]
    assert f"{target}.Net: there is no such class" in found["not_converted"][0]


def test_the_old_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    """The file that is read cannot be the one that is written."""
    old = tmp_path / "old.ckpt"
    old.write_bytes(COMPONENTS.read_bytes())
    assert run_json("convert", old, old, TRUST)["error"]["code"] == "same-file"
    assert old.read_bytes() == COMPONENTS.read_bytes()


def test_a_bad_renaming_is_wrong_usage(tmp_path: Path) -> None:
    """A renaming without both names is refused before anything is opened."""
    found = run_json("convert", SCRIPT, tmp_path / "new.ckpt", TRUST, "--rename", "old")
    assert found["exit_code"] == ExitCode.USAGE
    assert "--rename OLD=NEW" in found["error"]["message"]


# Checkpoints of replayml ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new.ckpt", "new.replayml"])
def test_an_old_checkpoint_of_replayml_is_converted(name: str, tmp_path: Path) -> None:
    """The converted file has the same model, tape and weights, in the form that the name asks for."""
    model = replayml.Regressor(mlp())
    old = write_legacy(tmp_path / "old.ckpt", model)
    found = converted(old, tmp_path / name)
    assert found["has_structure"], found
    checked = run_json("verify", tmp_path / name)
    assert checked["fingerprint"] == model.recipe().fingerprint
    assert checked["form"] == ("checkpoint" if name.endswith(".ckpt") else "file")
    if name.endswith(".ckpt"):
        content = torch.load(tmp_path / name, weights_only=True)
        assert (content["epoch"], content["global_step"]) == (3, 12)
        app: Any = replayml.Application.load_from_checkpoint(tmp_path / name)
    else:
        app = replayml.load(tmp_path / name)
    expected = model.create(seed=0).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in app.state_dict().items())


def test_other_weights_than_the_model_makes_are_told(tmp_path: Path) -> None:
    """A checkpoint whose weights do not fit its model is not converted as a whole."""
    model = replayml.Regressor(mlp())
    state = model.create(seed=0).state_dict()
    state["model.blocks.0.layer.weight"] = torch.zeros(1, 1)
    old = write_legacy(tmp_path / "old.ckpt", model, state_dict=state)
    found = converted(old, tmp_path / "new.ckpt")
    assert not found["has_structure"]
    assert "model.blocks.0.layer.weight: (1, 1) in the trained model, (8, 4) in this one" in found["not_converted"][0]


def test_what_needs_no_conversion_is_refused(tmp_path: Path) -> None:
    """A checkpoint of today, a recipe and a file of torch without a model are refused, each with its reason."""
    today = write_checkpoint(tmp_path / "today.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    for file, code, reason in [
        (today, "not-legacy", "needs no conversion"),
        (tmp_path / "other.ckpt", "not-legacy", "hold no model"),
        (tmp_path / "list.ckpt", "not-a-model", "no Lightning checkpoint"),
        (write_recipe(tmp_path / "mlp.json", mlp()), "unsafe-file", "without unpickling"),
    ]:
        with pytest.raises(RecipeError, match=reason) as caught:
            converted(file, tmp_path / "new.ckpt")
        assert caught.value.code == code
    found = run_json("convert", today, tmp_path / "new.ckpt", TRUST)
    assert found["exit_code"] == ExitCode.REFUSED
    assert found["error"]["code"] == "not-legacy"
    assert not (tmp_path / "new.ckpt").exists()


def test_a_pickle_that_ends_its_process_ends_no_other(tmp_path: Path) -> None:
    """Where the reading process dies, the command tells so and ends with 1."""
    old = write_legacy(tmp_path / "old.ckpt", replayml.Regressor(mlp()))
    content = torch.load(old, weights_only=True)
    content["hyper_parameters"][legacy.RECIPE_KEY] = b"cos\n_exit\n(I7\ntR."
    torch.save(content, old)
    found = run_json("convert", old, tmp_path / "new.ckpt", TRUST)
    assert found["exit_code"] == ExitCode.FAILED
    assert "the process that read the file failed: exit code 7" in found["error"]["message"]
