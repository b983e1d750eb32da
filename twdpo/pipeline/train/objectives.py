"""Which losses there are, what each needs and may be told, and its defaults: without torch.

Not for: the functions themselves (`loss.py`, `losses.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss of stage two.

    title: how a person knows it. beta: the default; usual: the betas that are no surprise. reference: whether it needs
    a reference's log-probs. smoothing: whether label smoothing is defined for it.
    """

    title: str
    beta: float
    usual: tuple[float, float]
    reference: bool = True
    smoothing: bool = True


OBJECTIVES = {
    "twdpo": Objective(title="token-weighted DPO", beta=0.005, usual=(0.0005, 1.0)),
    "simpo": Objective(title="token-weighted SimPO", beta=2.0, usual=(0.5, 20.0), reference=False),
    "ipo": Objective(title="token-weighted IPO", beta=0.1, usual=(0.001, 1.0), smoothing=False),
}

#: SimPO's γ where it is not given, as a part of its beta: where the paper's search for it begins.
GAMMA_SHARE = 0.5


def unusual(loss: str, beta: float) -> str | None:
    """What to tell of a beta that is seldom meant for this loss, or None."""
    low, high = OBJECTIVES[loss].usual
    if low <= beta <= high:
        return None
    return f"--beta {beta:g} is unusual with --loss {loss}: the default is {OBJECTIVES[loss].beta:g}"
