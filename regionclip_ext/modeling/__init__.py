"""Model parts of RegionCLIP."""
