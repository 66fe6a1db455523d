"""When each term of the objective acts: weights as functions of the step."""

from __future__ import annotations


def weight_at(weight: float, warmup_steps: int, step: int) -> float:
    """Rises in a straight line over the first `warmup_steps` steps, then stays."""
    return weight * min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else weight
