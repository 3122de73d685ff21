"""Optimizer and learning-rate schedules of SoCo."""
