"""Embedding with `model.pt` alone, and the faiss index."""
