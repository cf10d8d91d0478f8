"""A plug-in: a head, and the choice of it."""
