"""The recipe: a model as data.

A text is parsed (``strict``), walked into parts (``grammar``), and made into the record of a model once every name in
it was found (``reader``); `replayml.core.copying.realize` makes the model. The other way, ``writer`` makes a JSON value
of a record, and ``format`` its one canonical text.

=================  ==========================================================
``format``         the form: version, grammar, limits, codes of refusals
``faults``         what is wrong, and where
``strict``         bytes to JSON values
``leaves``         values without parts
``tensors``        small tensors and arrays
``codecs``         the user's own types
``torch_names``    the pinned tables of names
``names``          what a name stands for
``parts``          a recipe that was read but not built
``grammar``        JSON values to parts
``reader``         parts to the record of a model
``plain``          torch's own layers, given as arguments
``sharing``        objects that stand in more than one place
``provenance``     lines of the user's code
``writer``         the record of a model to JSON values
``recipe``         the class `Recipe`
=================  ==========================================================
"""

from __future__ import annotations

from replayml.recipe.codecs import Codec
from replayml.recipe.format import Limits
from replayml.recipe.recipe import Recipe

__all__ = ["Codec", "Limits", "Recipe"]
