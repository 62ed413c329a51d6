"""The parts of a measurement: problems as tensors, statistics of an engine's result, and its cross-check."""
