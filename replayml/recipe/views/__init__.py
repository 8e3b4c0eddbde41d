"""What can be seen of a recipe, or of a model, without making one from it.

==============  ==========================================================
``structure``   what stands in the JSON value of a model
``inspection``  what is in a model file, shown without following it
``effective``   what is in force in a model, by path
``diff``        what differs between two recipes
==============  ==========================================================
"""
