"""Data sets of drawings with thousands of classes, made from freely available packages."""
