"""Making weights: one loop, losses, the stages that use it, RL objectives, interpolation."""
