"""Looking at a cache: single pairs in the terminal. Figures over all of it: `twdpo.weights_cache.statistics`."""
