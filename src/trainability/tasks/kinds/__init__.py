"""The tasks that the package has, one file each."""
