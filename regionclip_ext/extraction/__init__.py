"""Features of regions in pictures, in the authors' format and as arrays."""
