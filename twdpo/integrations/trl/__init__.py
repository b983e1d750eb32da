"""TRL's DPOTrainer with a weight for every token, from a weights cache.

    from twdpo.integrations.trl import TwDPOTrainer

Importing this package imports trl; where that fails, UsageError says what to install. Not for: `twdpo train`, which
needs no trl.
"""

from twdpo.errors import UsageError

try:
    from twdpo.integrations.trl.trainer import TwDPOTrainer
except ImportError as error:
    raise UsageError(
        f"twdpo.integrations.trl needs trl 1.16 or newer; install it with: pip install 'twdpo[trl]' ({error})"
    ) from None

__all__ = ["TwDPOTrainer"]
