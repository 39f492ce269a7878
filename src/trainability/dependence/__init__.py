"""The dependence of the neurons of a layer on one another, and what dropout does to it."""
