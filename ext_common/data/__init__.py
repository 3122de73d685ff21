"""Detection data: registration, reading, sampling, loading."""
