"""train_net.py whose loader says which images it gives, spoils one of them, and may be killed.

Environment: IMAGES_LOG, a file to which each process appends ``.RANK`` and a line of file names for
every batch; SPOIL and KILL, "RANK ITERATION" of an image that becomes NaN and of a process' end.
"""

import os
import signal

import torch

import train_net
from d2_pixcontrast.data import TrainLoader
from d2_pixcontrast.engine import Trainer


class SpoiltLoader(TrainLoader):
    def __iter__(self):
        for iteration, batch in enumerate(super().__iter__(), self.start_iter):
            with open(f"{os.environ['IMAGES_LOG']}.{self.rank}", "a") as log:
                log.write(" ".join(sample["file_name"] for sample in batch) + "\n")
            here = f"{self.rank} {iteration}"
            if os.environ.get("SPOIL") == here:
                batch[0]["image"] = torch.full_like(batch[0]["image"], torch.nan, dtype=torch.float)
            if os.environ.get("KILL") == here:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


class SpoiltTrainer(Trainer):
    @classmethod
    def build_train_loader(cls, cfg):
        loader = super().build_train_loader(cfg)
        loader.__class__ = SpoiltLoader
        return loader


def main(cfg, args):
    train_net.Trainer = SpoiltTrainer
    return train_net.main(cfg, args)


if __name__ == "__main__":
    train_net.run(main)
