"""The model store: versions of a model, one of them live."""
