"""Data sets by name; each file registers its own and loads torch only when it is read."""
