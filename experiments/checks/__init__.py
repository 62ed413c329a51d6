"""Checks of the instrument itself: engines against each other, timings, everything that needs a GPU."""
