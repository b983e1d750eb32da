"""How good a trained policy is: held-out pairs, benchmark answers, judges, comparisons.

Not for: training (`pipeline/train`). Importing this package imports neither torch nor transformers.
"""
