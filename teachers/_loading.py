"""Weights into a network: all of them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def load_strictly(
    network: nn.Module, weights: Mapping[str, Tensor], file: object, kind: str, assign: bool = False
) -> None:
    """Load the weights of `file` into a network of this kind; where they do not fit, one line says how."""
    own = network.state_dict()
    # Files from before these counters existed lack them; in evaluation nobody reads them.
    lacking = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in own]
    resized = [
        f"{name} {list(weights[name].shape)} for {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    found = {"lack": lacking, "have besides": unknown, "have in other sizes": resized}
    wrong = "; they ".join(f"{what} {_some(names)}" for what, names in found.items() if names)
    if wrong:
        raise ValueError(f"the weights {file} are not those of {kind}: they {wrong}")
    network.load_state_dict(weights, assign=assign)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
