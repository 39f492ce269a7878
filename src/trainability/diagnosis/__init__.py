"""Finding out why a network does not train."""
