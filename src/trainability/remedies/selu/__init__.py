"""Self-normalizing networks."""
