"""Token-weighted DPO with token weights read off a language model's own attention."""

__version__ = "0.1.0"
