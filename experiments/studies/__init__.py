"""One module for each study that compares runs, beside the lists of runs in YAML."""
