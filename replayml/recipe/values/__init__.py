"""How values stand in a recipe, each kind with its reader and its writer.

=============  ==========================================================
``leaves``     values without parts
``tensors``    small tensors and arrays
``instances``  dataclasses and pydantic models
``plain``      torch's own layers, given as arguments
``opaque``     values without a data form, kept as pickles
=============  ==========================================================
"""
