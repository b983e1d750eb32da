"""The arms of a comparison: what one is, and which ones an entry of the file means.

Not for: the rest of the file (`config.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from twdpo.config import checked
from twdpo.errors import UsageError

#: Sources that keep how unevenly weight is spread, and not what it says.
CONTROLS = frozenset({"shuffled", "random"})
#: Of stage two, told only where an arm asks for it: most are refused beside a loss that they are not of.
_LOSS = ("loss", "simpo_gamma", "ipo_mean")
#: Characters of a folder's name that a text decides.
_LONGEST = 100
#: A list of its values is one setting.
_BETAS = "betas"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of weighting tokens; the fields are those of `AnnotateConfig` (source) and `TrainConfig`.

    betas: the arm's own, None for the comparison's. Raises UsageError.
    """

    name: str
    source: str = "attention"
    source_options: str | None = None
    attn_source: str = "last"
    sink_fix: bool = True
    uniform_mix: float = 0.0
    uncovered: str = "zero"
    loss: str = "twdpo"
    simpo_gamma: float | None = None
    ipo_mean: bool = False
    betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.betas is not None:
            object.__setattr__(self, _BETAS, sorted_betas(self.betas))

    @property
    def training(self) -> dict[str, Any]:
        """What of it stage two is told."""
        names = ("attn_source", "sink_fix", "uncovered")
        told = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name in _LOSS and getattr(self, f.name) != f.default
        }
        # Even weights of the judge's tokens are uneven ones of a policy with others.
        mix = 1.0 if self.source == "uniform" else self.uniform_mix
        return {name: getattr(self, name) for name in names} | {"uniform_mix": mix} | told

    @property
    def has_scale(self) -> bool:
        """Whether the scale of the weights changes the loss: weighted means know none."""
        return self.loss != "simpo" and not self.ipo_mean


def expand(name: str, settings: Any) -> list[Arm]:
    """The arms that one entry means: one for each combination of values where some are lists. Raises UsageError."""
    if not re.fullmatch(r"[\w.+=-]+", name) or not name.strip("."):
        raise UsageError(f"arms: {name!r} names a folder; use letters, digits, and . + = - _")
    if settings is None:
        settings = {}
    if not isinstance(settings, Mapping):
        raise UsageError(f"arms: {name} must be settings such as {{source: attention, uncovered: one}}")
    given = {str(key).replace("-", "_"): value for key, value in settings.items()}
    if "name" in given:
        raise UsageError(f"arms: {name} has a name: the entry's own")
    choices = {key: value if isinstance(value, list) and key != _BETAS else [value] for key, value in given.items()}
    several = [key for key, values in choices.items() if len(values) > 1]
    arms = []
    for values in itertools.product(*choices.values()):
        combined = dict(zip(choices, values, strict=True))
        suffix = "".join(f"-{key}={combined[key]}" for key in several)
        taken = checked(Arm, combined, f"arms: {name}")
        try:
            arms.append(Arm(**{"name": folder_name(name + suffix), **taken}))
        except UsageError as error:
            raise UsageError(f"arms: {name}: {error}") from None
    return arms


def folder_name(text: str) -> str:
    """A text as the name of a folder: itself where it can be one, else what is like it, and no other text's."""
    clean = re.sub(r"[^\w.+=-]", "_", text)[:_LONGEST]
    return clean if clean == text else f"{clean}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sorted_betas(betas: Any) -> tuple[float, ...]:
    """Betas in their order. Raises UsageError where there are none, one stands twice, or is no number above 0."""
    check_list(_BETAS, betas, "0.1")
    numbers = [_number(beta) for beta in betas]
    if not all(
        isinstance(beta, (int, float)) and not isinstance(beta, bool) and 0 < beta < math.inf for beta in numbers
    ):
        raise UsageError(f"betas: {listed(betas)} must be numbers above 0")
    return tuple(sorted(numbers))


def check_list(name: str, values: Any, example: str) -> None:
    """Raise UsageError where there are no values, or one stands twice."""
    if not values:
        raise UsageError(f"{name} is empty; give at least one, such as [{example}]")
    if len(set(values)) != len(values):
        raise UsageError(f"{name}: {listed(values)} names one twice; leave the second out")


def listed(values: Any) -> str:
    """As YAML has a list."""
    return "[" + ", ".join(str(value) for value in values) + "]"


def _number(value: Any) -> Any:
    """YAML reads 1e-2 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
