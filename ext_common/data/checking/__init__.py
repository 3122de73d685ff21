"""Checking whole datasets before training, and repairing their annotation files."""
