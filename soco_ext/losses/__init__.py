"""Losses and measurements of SoCo, without detectron2."""
