"""The parts that `minifork.measure` puts together: problems as tensors, statistics of a result, and its cross-check."""
