"""Real sets of pictures with thousands of classes, made from packages that any machine can get."""
