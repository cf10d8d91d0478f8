"""One function per step: artifacts in, artifact out. Callbacks and steps only adapt them."""
