"""Initializations of the weights."""
