"""What two processes keep of a batch of which each has half: torchrun two_memories.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_losses_contrast import half, learnt, value
from torch import distributed


def main() -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for mode in ("memory", "queue"):
        memory = learnt(mode)
        value(memory, half(rank))
        torch.save(memory.state_dict(), Path(sys.argv[1]) / f"{mode}{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()  # else a process may end while gloo's threads are at work


if __name__ == "__main__":
    main()
