"""The store: sharded uint8 images and int64 labels on disk."""
