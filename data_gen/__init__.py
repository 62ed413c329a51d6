"""Problems, traces, corpora, verifiers and their audit: numpy only, knows nothing of any model."""
