"""What no line of the package does, whatever a file says: read off its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import replayml

PACKAGE = Path(replayml.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

PICKLES = {
    "cli/legacy.py": "`replayml convert` reads old checkpoints there, in a process of its own",
    "recipe/values/opaque.py": "values that both sides said may be pickles",
    "testing.py": "a user's model, pickled and read back in the same test",
}
"""Where pickles are opened, and why."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a file, with what is called as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(PACKAGE)) for path in SOURCES])
def test_a_source_opens_no_pickle(path: Path) -> None:
    """``torch.load`` is always told ``weights_only=True``; pickles are opened in few places, for a reason."""
    for name, call in calls(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("weights_only", "True") == "True", f"{path}:{call.lineno}"
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"{path}:{call.lineno}"
        assert name not in {"eval", "exec", "compile", "__import__", "marshal.loads"}, f"{path}:{call.lineno}"
    modules = {name.partition(".")[0] for name in imports(path)}
    if path.relative_to(PACKAGE).as_posix() not in PICKLES:
        assert not modules & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "recipe").rglob("*.py")), ids=lambda path: path.name)
def test_the_recipe_looks_up_no_name_of_a_file(path: Path) -> None:
    """In the package that reads files nothing is imported by a computed name; only its own ``__init__`` does so."""
    called = {name for name, _ in calls(path)}
    assert path.name == "__init__.py" or not called & {"importlib.import_module", "import_module", "pydoc.locate"}
