"""How dependent the neurons of a layer are on one another, and what dropout does to that."""
