"""Looking at a cache: figures over all of it (`statistics`) and single pairs in the terminal (`terminal`)."""
