"""Studies and their runs, results, claims, figures, the report, and checks of the engines."""
