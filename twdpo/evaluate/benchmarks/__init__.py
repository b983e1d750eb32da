"""Answers to the public benchmarks, in the files that their official tools read: AlpacaEval 2, MT-Bench, Arena-Hard.

Not for: judging them here, without an API (`twdpo.evaluate.judging`).
"""
