"""The parts of an evaluation: its targets with their measurements, and eval.json and eval.npz, which collect them."""
