"""Commands of the project. A package only so that tests can import them (detectron2 0.6 installs another `tools`)."""
