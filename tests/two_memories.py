"""What two processes keep of a batch of which each has half: torchrun two_memories.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_losses_contrast import batch, learnt, value
from torch import distributed


def main() -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    mine = slice(2 * rank, 2 * rank + 2)
    for mode in ("memory", "queue"):
        memory, drawn, alone = learnt(mode), torch.zeros(1), torch.zeros(2)
        if mode == "memory":
            choose, normalise = memory.others, memory._log_z

            def others(own: torch.Tensor, seed: int, choose=choose) -> torch.Tensor:  # type: ignore[no-untyped-def]
                nonlocal drawn
                drawn = choose(own, seed)
                return drawn

            memory.others = others
            memory._log_z = lambda scores, normalise=normalise: note(scores, normalise, memory, alone)
        value(memory, tuple(part.map(lambda tensor: tensor[mine]) for part in batch([3, 8, 55, 21])))  # type: ignore[arg-type]
        kept = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
        torch.save({"kept": kept, "drawn": drawn, "log_z": alone}, Path(sys.argv[1]) / f"{mode}{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def note(scores, normalise, memory, alone):  # type: ignore[no-untyped-def]
    """Z as it would be of these scores alone."""
    for place, score in enumerate(scores):
        alone[place] = score.exp().mean().log() + torch.log(torch.tensor(float(len(memory.clips))))
    return normalise(scores)


if __name__ == "__main__":
    main()
