"""Small experiments that look whether a method does what it is for."""
