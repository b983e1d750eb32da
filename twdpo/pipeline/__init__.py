"""The two offline stages: `annotate` writes token weights into a cache, `train` reads them from it.

The stages never import each other; what both need of models, text and tokens stands in this folder.
"""
