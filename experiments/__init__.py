"""What to run, where, and what it shows: studies, results, claims, figures, the report."""
