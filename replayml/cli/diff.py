"""`replayml diff`: what differs between two models, and the calls that turn one into the other.

Invariants:
    * Equal recipes are told to be equal without any class; to tell what differs both models are made, not built, of
      classes of replayml, torch and modules named by ``--import`` alone.
    * Weights are compared where both files have some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from replayml.cli.opening import import_known, open_file, read_renames, with_hint
from replayml.cli.report import Answer, ExitCode, lines
from replayml.core.errors import RecipeError
from replayml.recipe.views.diff import RecipeDiff, compare_weights

__all__ = ["run"]


def run(first: Path, second: Path, imports: Sequence[str] = (), rename: Sequence[str] = ()) -> Answer:
    """Compare two files.

    Args:
        first: One file.
        second: The other one.
        imports: Modules that the user names.
        rename: Names in the files and those of today, as ``OLD=NEW``.
    """
    renames = read_renames(rename)
    one, other = open_file(first), open_file(second)
    has_weights = one.weights is not None and other.weights is not None
    weights = (one.tensors(), other.tensors()) if has_weights else None
    if one.recipe == other.recipe:
        found = RecipeDiff((), (), compare_weights(*weights) if weights else (), (), ())
    else:
        import_known((*one.recipe.names, *other.recipe.names), imports, renames)
        try:
            found = one.recipe.diff(other.recipe, rename=renames, weights=weights)
        except RecipeError as error:
            raise with_hint(error) from error
    prints = [one.recipe.fingerprint, other.recipe.fingerprint]
    data = {"files": [str(first), str(second)], "fingerprints": prints, "compared_weights": has_weights}
    code = ExitCode.FAILED if found else ExitCode.DONE
    return Answer({**data, **found.to_dict()}, lines(found), code)
