"""How weights are made: one loop, losses, the stages that use it, RL objectives, interpolation."""
