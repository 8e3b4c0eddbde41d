"""`tree`, `explain`, `verify`, `gc`: commands that look at files of all kinds."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import replayml
from replayml.cli.report import ExitCode
from replayml.layers.layer import Layer
from tests.cli.files import OWN, Net, mlp, run, run_json, write_checkpoint, write_recipe


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """Return a recipe whose class stands in a module of the current folder, not imported here, and its name."""
    monkeypatch.chdir(tmp_path)
    module = f"own_{tmp_path.name}"
    Path(f"{module}.py").write_text(OWN, encoding="ascii")
    text = write_recipe(Path("own.json"), Net(5)).read_text(encoding="ascii")
    Path("own.json").write_text(text.replace(f"{Net.__module__}.Net", f"{module}.Net"), encoding="ascii")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Path("own.json"), module


def saved(tmp_path: Path, form: str) -> Path:
    """Return a file with a model, in one of its forms."""
    if form == "recipe":
        return write_recipe(tmp_path / "mlp.json", mlp())
    if form == "checkpoint":
        return write_checkpoint(tmp_path / "mlp.ckpt")
    path = tmp_path / ("mlp.replayml" if form == "file" else "mlp")
    mlp().build(seed=0).save(path)
    return path


FORMS = ["recipe", "checkpoint", "file", "folder"]


# tree -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_tree_shows_modules_arguments_and_weights(form: str, tmp_path: Path) -> None:
    """Each module has its class, its arguments in force and, where the file has weights, their shapes."""
    file = saved(tmp_path, form)
    prefix = "model." if form == "checkpoint" else ""
    found = run_json("tree", file)
    modules = {module["path"]: module for module in found["modules"]}
    assert modules[f"{prefix}blocks.0.activation"]["class"] == "GELU"
    layer = modules[f"{prefix}blocks.1.layer"]
    assert layer["class"] == "Linear"
    assert layer["arguments"] == {"in_features": "8", "out_features": "8", "bias": "False"}
    assert layer["tensors"] == ([] if form == "recipe" else [{"name": "weight", "shape": [8, 8], "dtype": "float32"}])
    assert found["elements"] == (0 if form == "recipe" else 4 * 8 + 8 + 64 + 8 * 2 + 2)
    text = run("tree", file).stdout
    assert "layer  Linear(in_features=8, out_features=8, bias=False)" in text
    assert ("weight 8x8 float32" in text) == (form != "recipe")


def test_tree_of_unknown_classes_shows_the_paths_of_the_weights(own: tuple[Path, str]) -> None:
    """A class that this program does not know is named, not imported; with ``--import`` the user names its module."""
    file, module = own
    found = run_json("tree", file)
    assert found["exit_code"] == ExitCode.DONE
    assert [module["class"] for module in found["modules"]] == ["Net"]
    assert f"{module}.Net" in found["note"]
    assert "--import MODULE" in run("tree", file).stdout
    assert not Path("imported.txt").exists()
    assert module not in sys.modules
    found = run_json("tree", file, "--import", module)
    assert Path("imported.txt").exists()
    assert "note" not in found
    assert found["modules"][1]["arguments"] == {"in_features": "2", "out_features": "5"}


def test_an_import_that_fails_is_told(own: tuple[Path, str]) -> None:
    """The name of the module that is not there is told, without a traceback."""
    found = run_json("tree", own[0], "--import", "no_such_module_of_mine")
    assert found["exit_code"] == ExitCode.USAGE
    assert "--import no_such_module_of_mine: No module named" in found["error"]["message"]


def test_a_model_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """Arguments that a class takes, but cannot work with, end the command with a sentence."""
    file = write_recipe(tmp_path / "odd.json", replayml.Sequential(nn.Sequential(nn.Linear(2, 3))))
    file.write_text(file.read_text().replace('"in_features":2', '"in_features":"x"'), encoding="ascii")
    found = run_json("tree", file)
    assert found["exit_code"] == ExitCode.FAILED
    assert "the model cannot be made: TypeError" in found["error"]["message"]


def test_huge_sizes_are_refused(tmp_path: Path) -> None:
    """A model that takes more memory than there is is refused before any is taken."""
    file = write_recipe(tmp_path / "odd.json", replayml.Sequential(nn.Sequential(nn.Linear(2, 3))))
    file.write_text(file.read_text().replace('"in_features":2', '"in_features":1000000000000'), encoding="ascii")
    assert run("tree", file).exit_code == ExitCode.REFUSED


# explain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_explain_tells_the_winner_the_losers_and_the_line(form: str, tmp_path: Path) -> None:
    """The value in force, who set it, what lost and why, as text and as data."""
    file = saved(tmp_path, form)
    tag = "model.blocks.1.layer" if form == "checkpoint" else "blocks.1.layer"
    (found,) = run_json("explain", file, tag, "bias")["explanations"]
    assert (found["path"], found["value"], found["source"]) == (tag, "False", "user")
    assert found["where"].rpartition(":")[0].endswith("files.py")
    assert [candidate["value"] for candidate in found["candidates"]] == ["False", "True", "True"]
    text = run("explain", file, tag, "bias").stdout
    assert text.startswith(f"bias of Linear at '{tag}' is False, configured by the user at ")
    assert len(text.splitlines()) == len(str(mlp().explain("blocks.1.layer", "bias")).splitlines())


@pytest.mark.parametrize("name", ["open.replayml", "open.ckpt"])
def test_sizes_that_the_build_found_are_told(name: str, tmp_path: Path) -> None:
    """A size that was left open is explained, and shown in the tree, as it was read off the example input."""
    model: Any = replayml.Sequential(Layer(nn.Linear, None, 3), Layer(nn.ReLU))
    model = replayml.Regressor(model) if name.endswith(".ckpt") else model
    model.build(torch.zeros(1, 7)).save(tmp_path / name)
    tag = "model.0" if name.endswith(".ckpt") else "0"
    (found,) = run_json("explain", tmp_path / name, tag, "in_features")["explanations"]
    assert (found["value"], found["source"]) == ("7", "input")
    assert "0  Linear(in_features=7, out_features=3)" in run("tree", tmp_path / name).stdout


def test_explain_takes_selectors(tmp_path: Path) -> None:
    """Each match of a selector is explained; one without a match is an error with the nearest paths."""
    file = saved(tmp_path, "recipe")
    found = run_json("explain", file, "**.activation", "classtype")
    assert [entry["value"] for entry in found["explanations"]] == ["GELU", "ReLU", "Identity"]
    found = run_json("explain", file, "**.activaton", "classtype")
    assert found["exit_code"] == ExitCode.FAILED
    assert found["error"]["code"] == "SelectionError"
    assert "blocks.0.activation" in found["error"]["message"]


@pytest.mark.parametrize("tag", ["blocks[1].layer", "blocks.1.layer", "**[1].layer"])
def test_explain_takes_paths_as_they_are_printed(tag: str, tmp_path: Path) -> None:
    """An index may stand in brackets or after a dot, in a path and in a selector."""
    (found,) = run_json("explain", saved(tmp_path, "file"), tag, "bias")["explanations"]
    assert (found["path"], found["value"]) == ("blocks.1.layer", "False")


def test_explain_tells_wrong_paths_and_names(tmp_path: Path) -> None:
    """A path or a setting that does not exist is an error that names the nearest."""
    file = saved(tmp_path, "recipe")
    result = run("explain", file, "blocks.0.layr", "bias")
    assert result.exit_code == ExitCode.FAILED
    assert "nearest existing paths: blocks.0.layer" in result.stderr
    assert "Did you mean 'bias'?" in run("explain", file, "blocks.0.layer", "bais").stderr


def test_explain_refuses_unknown_classes(own: tuple[Path, str]) -> None:
    """A class that is not known is refused with the option that makes it known, and is not imported."""
    file, module = own
    found = run_json("explain", file, "hidden", "out_features")
    assert found["exit_code"] == ExitCode.REFUSED
    assert found["error"]["code"] == "untrusted-name"
    assert "--import MODULE" in found["error"]["message"]
    assert not Path("imported.txt").exists()
    (found,) = run_json("explain", file, "hidden", "out_features", "--import", module)["explanations"]
    assert found["value"] == "5"
    assert found["via"][0]["name"] == "width"


# Classes of a script ----------------------------------------------------------------------------------------------


def test_a_class_of_a_script_is_found_where_the_user_says(own: tuple[Path, str]) -> None:
    """A file that a script saved says so; with ``--import`` and ``--rename`` its class is the one of a module."""
    file, module = own
    file.write_text(file.read_text(encoding="ascii").replace(f'"{module}.Net"', '"__main__.Net"'), encoding="ascii")
    told = run("explain", file, "hidden", "out_features").stderr
    assert "It stood in a script" in told
    assert "--import MODULE; for a class of a script, also where it is now: --rename __main__=MODULE" in told
    for renaming in (f"__main__={module}", f"__main__.Net={module}.Net"):
        words = ["--import", module, "--rename", renaming]
        (found,) = run_json("explain", file, "hidden", "out_features", *words)["explanations"]
        assert found["value"] == "5"
        modules = run_json("tree", file, *words)["modules"]
        assert [each["path"] for each in modules] == ["", "hidden", "activation", "out"]
        other = write_recipe(Path("other.json"), sys.modules[module].Net(6))
        assert run_json("diff", file, other, *words)["calls"] == ["model.configure(width=6)"]


@pytest.mark.parametrize("renaming", ["old", "=new", "old=", "old.=new", "old=new."])
def test_what_is_no_renaming_is_wrong_usage(renaming: str, tmp_path: Path) -> None:
    """Each command that takes ``--rename`` says how it is written."""
    file = saved(tmp_path, "recipe")
    for words in (["tree", file], ["explain", file, "", "bias"], ["diff", file, file]):
        found = run_json(*words, "--rename", renaming)
        assert found["exit_code"] == ExitCode.USAGE
        assert found["error"] == {
            "code": "bad-rename",
            "message": f"{renaming!r} is no renaming. Write --rename OLD=NEW",
        }


# inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_inspect_shows_what_is_in_a_file(form: str, tmp_path: Path) -> None:
    """Structure, tape, names, versions and weights, as text and as data."""
    file = saved(tmp_path, form)
    found = run_json("inspect", file)
    assert found["exit_code"] == ExitCode.DONE
    assert found["trusted"]
    assert "torch" in found["packages"]
    assert (found["weights"] is None) == (form == "recipe")
    text = run("inspect", file).stdout
    assert "model.blocks[1].layer.configure(bias=False)" in text
    assert "Nothing was imported, called or unpickled." in text


def test_inspect_names_what_is_unknown_and_imports_nothing(own: tuple[Path, str]) -> None:
    """A class of a module that was not imported is told, and its module is not imported."""
    file, module = own
    found = run_json("inspect", file)
    assert not found["trusted"]
    assert [name["name"] for name in found["names"] if not name["trusted"]] == [f"{module}.Net"]
    assert "names: 1 of 1 cannot be used now" in run("inspect", file).stdout
    assert not Path("imported.txt").exists()
    assert module not in sys.modules


# diff -------------------------------------------------------------------------------------------------------------


def test_diff_of_equal_models_ends_with_0(tmp_path: Path) -> None:
    """The same model in two files of different form does not differ."""
    first, second = saved(tmp_path, "recipe"), saved(tmp_path, "folder")
    found = run_json("diff", first, second)
    assert (found["exit_code"], found["same"], found["compared_weights"]) == (ExitCode.DONE, True, False)
    assert run("diff", first, second).stdout == "no difference\n"


def test_diff_tells_settings_and_calls_and_ends_with_1(tmp_path: Path) -> None:
    """What differs is told by path, with the calls that turn the first model into the second."""
    first = saved(tmp_path, "recipe")
    second = write_recipe(tmp_path / "wider.json", mlp().configure(out_features=3))
    found = run_json("diff", first, second)
    assert (found["exit_code"], found["same"]) == (ExitCode.FAILED, False)
    assert found["calls"] == ["model.configure(out_features=3)"]
    assert len(set(found["fingerprints"])) == 2
    result = run("diff", first, second)
    assert result.exit_code == ExitCode.FAILED
    assert "model.out_features: 2 -> 3" in result.stdout
    assert result.stderr == ""


def test_diff_compares_weights(tmp_path: Path) -> None:
    """Two trained models of one recipe differ in their weights, which are named."""
    first, second = tmp_path / "first.replayml", tmp_path / "second"
    model = mlp().build(seed=0)
    model.save(first)
    model.save(second)
    found = run_json("diff", first, second)
    assert (found["same"], found["compared_weights"]) == (True, True)
    with torch.no_grad():
        model.blocks[2].layer.bias += 1
    model.save(second)
    found = run_json("diff", first, second)
    assert found["exit_code"] == ExitCode.FAILED
    assert [change["name"] for change in found["weights"]] == ["blocks.2.layer.bias"]


def test_diff_of_unknown_classes(own: tuple[Path, str]) -> None:
    """Equal files need no class; to tell what differs the user names the module."""
    file, module = own
    other = Path("other.json")
    other.write_text(file.read_text().replace('"args":[5]', '"args":[6]'), encoding="ascii")
    assert run("diff", file, file).exit_code == ExitCode.DONE
    found = run_json("diff", file, other)
    assert found["exit_code"] == ExitCode.REFUSED
    assert "--import MODULE" in found["error"]["message"]
    assert not Path("imported.txt").exists()
    found = run_json("diff", file, other, "--import", module)
    assert found["exit_code"] == ExitCode.FAILED
    assert found["calls"] == ["model.configure(width=6)"]


def test_diff_refuses_a_bad_file(tmp_path: Path) -> None:
    """A file that cannot be opened is refused, whichever of the two it is."""
    good, bad = saved(tmp_path, "recipe"), tmp_path / "bad.json"
    bad.write_text("{")
    for files in ((good, bad), (bad, good)):
        assert run_json("diff", *files)["exit_code"] == ExitCode.REFUSED


# verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_verify_tells_that_a_file_is_whole(form: str, tmp_path: Path) -> None:
    """A whole file of any form is told with its fingerprint; only sealed ones are compared byte by byte."""
    file = saved(tmp_path, form)
    found = run_json("verify", file)
    assert found["exit_code"] == ExitCode.DONE
    assert found["form"] == form
    assert found["is_sealed"] == (form in ("file", "folder"))
    if form != "checkpoint":
        assert found["fingerprint"] == mlp().recipe().fingerprint
    assert ("all as they were written" in run("verify", file).stdout) == found["is_sealed"]


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_verify_refuses_a_damaged_file(form: str, damage: str, tmp_path: Path) -> None:
    """One flipped bit, or one byte too few, in any of the files of a model is refused."""
    file = saved(tmp_path, form)
    for part in [file] if form == "file" else sorted(file.iterdir()):
        whole = part.read_bytes()
        middle = len(whole) // 2
        changed = whole[:-1] if damage == "cut" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        part.write_bytes(changed)
        assert run_json("verify", file)["exit_code"] == ExitCode.REFUSED, part.name
        part.write_bytes(whole)
    assert run("verify", file).exit_code == ExitCode.DONE


# gc ---------------------------------------------------------------------------------------------------------------


def test_gc_removes_what_a_killed_save_left(tmp_path: Path) -> None:
    """Old temporary files go; the model, files of others and young files stay."""
    folder = saved(tmp_path, "folder")
    kept = {path.name for path in folder.iterdir()} | {"notes.tmp", ".replayml-00000000000000aa.tmp"}
    names = [".replayml-0123456789abcdef.tmp", "notes.tmp", ".replayml-00000000000000aa.tmp"]
    for name in names:
        (folder / name).write_bytes(b"left")
    old = time.time() - 7200
    for name in names[:2]:
        os.utime(folder / name, (old, old))
    rehearsal = run_json("gc", folder, "--dry-run")
    assert [Path(path).name for path in rehearsal["removed"]] == names[:1]
    assert (folder / names[0]).exists()
    assert "would be removed" in run("gc", folder, "--dry-run").stdout
    assert run_json("gc", folder)["removed"] == rehearsal["removed"]
    assert {path.name for path in folder.iterdir()} == kept
    assert run("gc", folder).stdout == "nothing to remove\n"
    assert run("verify", folder).exit_code == ExitCode.DONE


def test_gc_takes_a_folder(tmp_path: Path) -> None:
    """A file is wrong usage."""
    assert run("gc", saved(tmp_path, "recipe")).exit_code == ExitCode.USAGE


# What is in a checkpoint ------------------------------------------------------------------------------------------


def test_checkpoints_without_a_recipe_are_refused(tmp_path: Path) -> None:
    """Tensors alone, and other dicts, are files of torch that hold no model."""
    for number, content in enumerate([{"a": torch.zeros(1)}, [1], {"state_dict": {}, "hyper_parameters": {"x": 1}}]):
        torch.save(content, tmp_path / f"{number}.ckpt")
        found = run_json("tree", tmp_path / f"{number}.ckpt")
        assert found["error"]["code"] == "no-recipe"


def test_a_checkpoint_with_objects_is_not_unpickled(tmp_path: Path) -> None:
    """What torch does not open without unpickling is refused, and was not run."""
    trace = tmp_path / "run.txt"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.write_text, (trace, "run")

    torch.save({"state_dict": {}, "hyper_parameters": {"x": Hostile()}}, tmp_path / "bad.ckpt")
    for command in ("tree", "verify", "inspect"):
        assert run_json(command, tmp_path / "bad.ckpt")["error"]["code"] == "unsafe-file"
    assert not trace.exists()
    torch.load(tmp_path / "bad.ckpt", weights_only=False)  # the honest twin: unpickled, it runs
    assert trace.exists()


def test_names_of_a_file_reach_the_terminal_without_commands(tmp_path: Path) -> None:
    """A name with control characters is shown with escapes, in text and in JSON."""
    file = write_recipe(tmp_path / "net.json", replayml.Sequential(Layer(nn.Linear, 1, 1)))
    file.write_text(file.read_text().replace("torch.nn.Linear", "torch.nn.\\u001b[31m"), encoding="ascii")
    for words in (["tree", file], ["tree", file, "--json"], ["verify", file]):
        result = run(*words)
        assert "\x1b" not in result.stdout + result.stderr
    assert json.loads(run("tree", file, "--json").stdout)
