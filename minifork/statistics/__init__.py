"""Pure functions of numbers: pass@k, intervals, tests whether two engines agree."""
