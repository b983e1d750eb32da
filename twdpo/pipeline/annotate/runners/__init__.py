"""Runs of stage one that more than this process takes part in."""
