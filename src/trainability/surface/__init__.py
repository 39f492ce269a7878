"""Loss surfaces: what a model's loss is on a plane through its weights."""
