"""Images with captions: where they come from, and what of them training sees."""
