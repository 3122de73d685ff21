"""Large-scale jitter and Copy-Paste, and the training loaders that use them."""
