"""Detic's model: meta-architecture, ROI heads and their predictors."""
