"""Assignment of images and classes to the splits."""
