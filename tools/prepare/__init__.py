"""The commands of tools/prepare_data.py, a module each: ``add_arguments(parser)`` and ``run(args)``."""
