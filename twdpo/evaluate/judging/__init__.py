"""Two models' answers compared by a judge on this machine, in both orders, without an API.

Not for: scores that the benchmarks' leaderboards would accept; their official judges give those.
"""
