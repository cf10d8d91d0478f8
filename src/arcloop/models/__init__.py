"""Backbones, margin heads, and the embedder that is scripted."""
