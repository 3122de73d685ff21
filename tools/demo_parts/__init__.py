"""What tools/demo.py is made of."""
