"""Model, training, engines for pass@k, statistics and the command line."""
