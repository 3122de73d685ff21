"""CenterNet as proposal generator and as a detector of its own (specification section 1.2)."""
