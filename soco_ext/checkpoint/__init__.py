"""Weights of a pretraining for detectors, and the released checkpoints."""
