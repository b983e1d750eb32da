"""manifest.json: what a cache holds, how it was made, and what stage two takes from it when nothing else is said.

Not for: finding rows. What is done is known by the hashes in finished shards, never by the counts here, which are
those of the last run that ended in good order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twdpo import __version__
from twdpo.errors import CacheCorrupt, CacheError, SchemaTooNew
from twdpo.weights_cache.durable import write_durably
from twdpo.weights_cache.recipe import Recipe, canonical_json

MANIFEST = "manifest.json"
DATA = "data"
REJECTS = "rejects.jsonl"
CARD = "README.md"
WEIGHTS = "weights"
REFERENCE = "reference"

# schema.py has the same number, but importing it would bring in pyarrow, and a manifest needs none.
XX
