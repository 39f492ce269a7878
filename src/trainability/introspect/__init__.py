"""Looking into a model: which layers there are, reading them as they run, and what feeds what."""
