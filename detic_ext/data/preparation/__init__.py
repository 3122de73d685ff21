"""The preparation of Detic's annotation files (specification 6.6); commands: tools/prepare_data.py."""
