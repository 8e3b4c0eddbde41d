"""Every notebook runs from top to bottom in a fresh kernel, and is committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS_PER_CELL = 120


class OwnKernel(KernelSpecManager):
    """Finds the kernel of the running interpreter alone, whatever is registered on the machine."""

    kernel_dirs = ()


class OwnManager(AsyncKernelManager):
    """Starts that kernel."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return OwnKernel()


@pytest.fixture
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    """One notebook, valid and as it is committed."""
    found = nbformat.read(request.param, as_version=4)
    nbformat.validate(found)
    return found


all_notebooks = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem, indirect=True)


def test_notebooks_are_numbered_from_one() -> None:
    """The notebooks are numbered in the order of the data flow, without a gap."""
    assert [int(path.name[:2]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))
    assert NOTEBOOKS


@all_notebooks
def test_notebook_is_stored_without_outputs(notebook: nbformat.NotebookNode) -> None:
    """A committed notebook holds text and code, but no outputs and no execution counts."""
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@all_notebooks
def test_notebook_runs(notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell of a notebook runs without an error, in an empty folder and on one core."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "work"
    folder.mkdir()
    client = NotebookClient(
        notebook,
        kernel_manager_class=OwnManager,
        timeout=SECONDS_PER_CELL,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
