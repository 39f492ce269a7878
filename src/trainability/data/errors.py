"""The exception of the data sets."""


class DataError(ValueError):
    """Data that is unknown, missing or damaged."""
