"""A model's trace tree cut by automata, decode policies, and the engines that compute the outcomes of its traces."""
