"""Object proposals: how they are found, chosen and kept."""
