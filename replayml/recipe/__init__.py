"""The recipe: a model as data.

A text is parsed (``text.strict``), walked into parts (``text.grammar``), and made into the record of a model once every
name in it was found (``text.reader``); `replayml.core.copying.realize` makes the model. The other way, ``text.writer``
makes a JSON value of a record, and ``format`` its one canonical text.

==============  ==========================================================
``recipe``      the class `Recipe`
``format``      the form: version, grammar, limits, codes of refusals
``versions``    documents of earlier versions
``faults``      what is wrong, and where
``codecs``      the user's own types
``migrate``     names and arguments that have changed since
``data_sets``   what was given to train and to evaluate with, which is left out
``provenance``  lines of the user's code
``randomness``  the global random generators
``text``        from text to a record, and back
``values``      how each kind of value is written and read
``files``       recipes with weights, on disk
``views``       what can be seen of a recipe without a model
==============  ==========================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from replayml.recipe.codecs import Codec
from replayml.recipe.format import Limits

if TYPE_CHECKING:
    from replayml.recipe.recipe import Recipe

__all__ = ["Codec", "Limits", "Recipe"]


def __getattr__(name: str) -> Any:
    """Import `Recipe`, and with it all that reads and writes, when it is first used."""
    if name != "Recipe":
        raise AttributeError(f"module 'replayml.recipe' has no attribute {name!r}")
    value = importlib.import_module("replayml.recipe.recipe").Recipe
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
