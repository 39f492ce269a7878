"""Modules that models are made of and that remedies put into networks: IC layers, norms, shaped activations, sums."""
