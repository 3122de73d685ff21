"""Losses of the long-tail recipe: no detectron2, no config."""
