"""Training: the loop, the record of a run, and the process it runs in."""
