"""Several networks of one architecture as one module."""
