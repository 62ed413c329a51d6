"""What a measurement takes and says: problems as tensors, and quantities of an engine's result."""
