"""How what is served reaches a worker: a spec, and a model file or the name of a function."""
