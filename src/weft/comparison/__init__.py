"""Many methods on the same rows, seeds, steps and byte counter: a grid of runs, each played once, and the table of them."""
