"""A recipe as text: strict JSON read into parts and into a record, and a record written as JSON.

===============  ==========================================================
``strict``       bytes to JSON values
``grammar``      JSON values to parts
``extent``       how much a document comes to, written out
``parts``        a recipe that was read but not built
``names``        what a name stands for
``torch_names``  the pinned tables of names
``reader``       parts to the record of a model
``metering``     what comes of a recipe, counted before it is allocated
``watching``     a watch over code that goes on and on
``sharing``      objects that stand in more than one place
``writer``       the record of a model to JSON values
===============  ==========================================================
"""
