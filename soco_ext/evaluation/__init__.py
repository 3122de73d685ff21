"""Scores of what was pretrained: linear classification, and detection benchmarks."""
