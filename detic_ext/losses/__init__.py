"""Losses of the Detic detector: no detectron2, no config, one job a file.

Start at :mod:`detic_ext.losses.box_classification`, :mod:`detic_ext.losses.box_regression` (boxes)
and :mod:`detic_ext.losses.factory` (image labels).
"""
