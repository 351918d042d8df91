"""train_net.py whose loader says which images it gives, and may spoil one of them.

Environment: IMAGES_LOG, a file to which each process appends ``.RANK`` and a line of file names for
every batch; SPOIL, "RANK ITERATION" of an image that becomes NaN.
"""

import os

import torch
import train_net
from detectron2.utils import comm

from d2_pixcontrast.compat import launch
from d2_pixcontrast.data import TrainLoader
from d2_pixcontrast.engine import Trainer, default_argument_parser, setup_cfg


class SpoiltLoader(TrainLoader):
    def __iter__(self):
        rank = str(comm.get_rank())
        spoilt_rank, spoilt_iteration = os.environ.get("SPOIL", "none 0").split()
        for iteration, batch in enumerate(super().__iter__(), self.start_iter):
            with open(f"{os.environ['IMAGES_LOG']}.{rank}", "a") as log:
                log.write(" ".join(sample["file_name"] for sample in batch) + "\n")
            if rank == spoilt_rank and iteration == int(spoilt_iteration):
                batch[0]["image"] = torch.full_like(batch[0]["image"], torch.nan, dtype=torch.float)
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
    args = default_argument_parser().parse_args()
    cfg = setup_cfg(args)
    launch(main, args.num_gpus, dist_url=args.dist_url, args=(cfg, args), device=cfg.MODEL.DEVICE)
