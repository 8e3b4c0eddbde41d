"""The recipe: a model as data.

A text is parsed (``strict``), walked into parts (``grammar``), and made into the record of a model once every name in
it was found (``reader``); `replayml.core.copying.realize` makes the model. The other way, ``writer`` makes a JSON value
of a record, and ``format`` its one canonical text.

=================  ==========================================================
``format``         the form: version, grammar, limits, codes of refusals
``versions``       documents of earlier versions
``faults``         what is wrong, and where
``strict``         bytes to JSON values
``leaves``         values without parts
``tensors``        small tensors and arrays
``instances``      dataclasses and pydantic models
``codecs``         the user's own types
``opaque``         values without a data form, kept as pickles
``torch_names``    the pinned tables of names
``names``          what a name stands for
``migrate``        names and arguments that have changed since
``parts``          a recipe that was read but not built
``grammar``        JSON values to parts
``reader``         parts to the record of a model
``plain``          torch's own layers, given as arguments
``sharing``        objects that stand in more than one place
``provenance``     lines of the user's code
``writer``         the record of a model to JSON values
``metering``       what comes of a recipe, counted before it is allocated
``effective``      what is in force in a model, by path
``diff``           what differs between two recipes
``recipe``         the class `Recipe`
``atomic``         replacing a file as a whole
``regular``        opening what must be a regular file
``sums``           digests of many bytes
``container``      sealed weights
``state``          what is known of a built model beside its recipe
``manifest``       which files of a folder are the model
``files``          model files, read and verified
``storing``        model files, written
``archive``        checkpoints, looked at before torch reads them
``randomness``     the global random generators
``weights``        from stored tensors to the weights of a model
``structure``      what stands in the JSON value of a model
``inspection``     what is in a model file, shown without following it
=================  ==========================================================
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
