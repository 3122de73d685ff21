"""Regions that a detector proposed once, kept in files for pretraining."""
