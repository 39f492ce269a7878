"""Layerwise batch-entropy regularization: the term, its statistics, and the module around them."""
