"""The demo's toy world: how its classes, pictures and annotation files are made.

``tools/make_demo_dataset.py`` is the command. In here: ``classes`` (what exists), ``shapes``,
``fills`` and ``sprites`` (one object), ``backgrounds`` and ``canvas`` (where it is put),
``pictures`` (scenes and label pictures), ``annotations`` (LVIS v1 records), ``writer``,
``manifest`` and ``preview`` (files on disk).
"""
