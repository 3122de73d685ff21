"""Detector parts of the frozen-backbone paper: necks, heads, adapters and the freeze itself."""
