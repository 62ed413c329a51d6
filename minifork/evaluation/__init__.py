"""The parts of the command `minifork.evaluate`: targets with their measurements, and eval.json and eval.npz."""
