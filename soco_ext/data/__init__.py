"""What SoCo trains on: views of an image, boxes that correspond, and the loader."""
