"""What teachers say in two processes is what they say in one: torchrun two_processes.py FILE, a list of examples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from omegaconf import OmegaConf

from distill import plugins
from distill.outputs import Clips
from distill.teaching.teacher import fingerprint, open_teacher


def main() -> None:
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    for name, given, classes in json.loads(Path(sys.argv[1]).read_text()):
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(plugins.schema("teacher", name)), given))
        teacher = open_teacher(options, classes)
        shape = (4, teacher.spec.frames, 3, teacher.spec.size, teacher.spec.size)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        number = torch.arange(4)
        clips = Clips(frames=frames, label=number - number, index=number, view=number)
        mine = slice(2 * accelerator.process_index, 2 * accelerator.process_index + 2)
        halves = accelerator.gather(teacher(clips.map(lambda tensor, mine=mine: tensor[mine])).dense)
        torch.testing.assert_close(halves, teacher(clips).dense, rtol=1e-4, atol=1e-5)
        prints = gather_object([fingerprint(options)])
        assert prints[0] == prints[1]
        accelerator.print("alike", name)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # else a process may end while gloo's threads are at work, which C++ punishes


if __name__ == "__main__":
    main()
