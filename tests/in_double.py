"""Trains with networks in float64, where what is summed in another order stays the same: in_double.py KEY=VALUE ..."""

from __future__ import annotations

import sys

import torch

from distill import command

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    sys.exit(command.run("train", sys.argv[1:]))
