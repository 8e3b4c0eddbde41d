"""`replayml explain`: why a setting of a model has its value.

Invariants:
    * The model is made, not built, of classes of replayml, torch and modules named by ``--import`` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from replayml.cli.opening import make_model, open_file
from replayml.cli.report import Answer, lines
from replayml.module.explain import Candidate, Explanation, shown
from replayml.module.selection import Selection, select

__all__ = ["run"]


def run(path: Path, tag: str, name: str, imports: Sequence[str] = (), rename: Sequence[str] = ()) -> Answer:
    """Explain a setting.

    Args:
        path: The file.
        tag: Where the module stands: ``blocks.0.layer`` or ``blocks[0].layer``, ``""`` for the model itself, or a
            selector such as ``**.activation``, which must match.
        name: The name of the setting.
        imports: Modules that the user names.
        rename: Names in the file and those of today, as ``OLD=NEW``.
    """
    model = make_model(open_file(path), imports, rename)
    found = [model.explain(place, name) for place in _places(model, tag)]
    data = {"file": str(path), "explanations": [_data(explanation) for explanation in found]}
    return Answer(data, lines(*found))


def _places(model: Any, tag: str) -> Iterator[str]:
    """Yield the paths that a tag stands for; one that is no selector is taken as it is, also where nothing stands."""
    if not any(mark in tag for mark in "*|#"):
        yield tag
        return
    selection: Selection = select(model, tag)
    yield from (".".join(path) for path in selection.some_paths())


def _data(explanation: Explanation) -> dict[str, Any]:
    return {
        "path": ".".join(explanation.path),
        "name": explanation.name,
        "owner": explanation.owner,
        "value": shown(explanation.value),
        "source": _source(explanation.candidates[0]),
        "where": None if explanation.where is None else str(explanation.where),
        "candidates": [
            {
                "value": shown(candidate.value),
                "source": _source(candidate),
                "where": None if candidate.where is None else str(candidate.where),
                "origin": candidate.origin,
                "reason": candidate.reason,
            }
            for candidate in explanation.candidates
        ],
        "via": [_data(above) for above in explanation.via],
    }


def _source(candidate: Candidate) -> str:
    if candidate.source is None:
        return "user"
    return candidate.source if isinstance(candidate.source, str) else ".".join(candidate.source) or "model"
