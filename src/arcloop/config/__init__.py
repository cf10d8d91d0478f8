"""Configuration: schema, composition, and the check of `_target_` nodes. Imports no torch."""
