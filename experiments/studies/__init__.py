"""Studies: lists of runs in YAML; demo, frontier, rl, sensitivity, reproduce; the others are shared."""
