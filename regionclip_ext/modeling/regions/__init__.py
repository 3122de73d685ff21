"""Where regions come from: a frozen detector's RPN, chance, a grid, or ground truth."""
