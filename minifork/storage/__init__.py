"""What lies on disk: files that are whole or absent, weights, measurements with their runs, runs of 0.1."""
