"""Storage on disk: files that are whole or absent, locks, weights, measurements kept with their runs."""
