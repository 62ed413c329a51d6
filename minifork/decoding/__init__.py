"""Where traces end: a model's trace tree cut by automata, decode policies, and the engines that explore it."""
