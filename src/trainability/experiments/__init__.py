"""Experiments: recipes and the comparison of remedies."""
