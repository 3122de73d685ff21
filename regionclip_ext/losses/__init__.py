"""The losses of RegionCLIP pretraining; none needs detectron2 or a configuration."""
