"""Adapters to other trainers, each in a package named after it and imported only when asked for."""
