"""Data loaders whose stream depends on the seed alone: not on workers, ranks or restarts."""

import itertools
import os
import secrets

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset

from .labels import DataError
from .mapper import SemSegMapper
from .seeding import epoch_permutation, seeded

__all__ = ["TrainLoader", "build_test_loader", "build_train_loader"]


def build_train_loader(cfg, mapper=None) -> "TrainLoader":
    """The loader of ``cfg.DATASETS.TRAIN``.

    Args:
        cfg: the configuration. With SEED < 0 a seed is drawn, the same on all ranks.
        mapper: maps a dataset dict to a sample; default: ``SemSegMapper(cfg, is_train=True)``.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH cannot be divided by the number of processes.
    """
    dicts = [DatasetCatalog.get(name) for name in cfg.DATASETS.TRAIN]
    # Not numpy's or torch's generators: whoever seeded them would get the same data in every run.
    seed = cfg.SEED if cfg.SEED >= 0 else comm.all_gather(secrets.randbits(31))[0]
    return TrainLoader(
        list(itertools.chain.from_iterable(dicts)),
        mapper or SemSegMapper(cfg, is_train=True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_test_loader(cfg, dataset_name: str, mapper=None) -> DataLoader:
    """The loader of one test dataset: every image once over all ranks, lists of one sample.

    Args:
        mapper: maps a dataset dict to a sample; default: ``SemSegMapper(cfg, is_train=False)``.
    """
    dataset = DatasetFromList(DatasetCatalog.get(dataset_name), copy=False)
    return _Loader(
        _Mapped(dataset, mapper or SemSegMapper(cfg, is_train=False)),
        sampler=InferenceSampler(len(dataset)),
        batch_size=1,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


class TrainLoader:
    """Batches of an infinite stream of samples, in which a position defines everything.

    Position p is in epoch p // N and shows the image ``permutation(seed, epoch)[p % N]``, augmented
    with randomness keyed by (seed, p). Iteration t takes positions t * B .. t * B + B - 1, of which
    rank r takes the r-th contiguous part. Hence neither the number of workers nor that of ranks nor
    a restart at any iteration changes the data.

    Nothing is started before the first batch is asked for, so that ``start_iter`` and ``seed`` can
    still be set after a trainer has called ``iter``.

    Attributes:
        start_iter: iteration of the first batch; set it before the first batch is taken.
        seed: of order and augmentation; to be saved and restored with a checkpoint.
    """

    def __init__(
        self,
        dataset: list[dict],
        mapper,
        *,
        total_batch_size: int,
        seed: int,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        """
        Args:
            dataset: dataset dicts.
            mapper: maps one of them to a sample.
            total_batch_size: B, of all ranks together.
            seed: non-negative.
            num_workers: processes that map samples; 0 = this one.
            rank, world_size: default: those of detectron2's ``comm``.

        Raises:
            ValueError: B cannot be divided by the number of ranks, or the dataset is empty.
        """
        self.rank = comm.get_rank() if rank is None else rank
        self.world_size = comm.get_world_size() if world_size is None else world_size
        if total_batch_size < 1 or total_batch_size % self.world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH ({total_batch_size}) must be a positive multiple of the "
                f"number of processes ({self.world_size})"
            )
        if not len(dataset):
            raise ValueError("the training set is empty")
        self.dataset = DatasetFromList(dataset, copy=False)
        self.mapper = mapper
        self.total_batch_size = total_batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.start_iter = 0

    def __iter__(self):
        yield from _Loader(
            _Stream(self.dataset, self.mapper, self.seed),
            batch_sampler=_Positions(self),
            num_workers=self.num_workers,
        )


class _Positions:
    """For every iteration the positions of this rank: a batch sampler."""

    def __init__(self, loader: TrainLoader):
        self.batch_size = loader.total_batch_size // loader.world_size
        self.first = loader.start_iter * loader.total_batch_size + loader.rank * self.batch_size
        self.step = loader.total_batch_size

    def __iter__(self):
        for start in itertools.count(self.first, self.step):
            yield list(range(start, start + self.batch_size))


class _Mapped(Dataset):
    """Mapped samples by index. A sample that cannot be used is returned as its error."""

    def __init__(self, dataset, mapper):
        self.dataset = dataset
        self.mapper = PicklableWrapper(mapper)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.mapper(self.dataset[index])
        except DataError as error:
            return error


class _Stream(_Mapped):
    """Mapped samples by position in the training stream."""

    def __init__(self, dataset, mapper, seed: int):
        super().__init__(dataset, mapper)
        self.seed = seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int):
        epoch, place = divmod(position, len(self.dataset))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, epoch_permutation(len(self.dataset), self.seed, epoch)
        with seeded(self.seed, position):
            return super().__getitem__(int(self._epoch[1][place]))


class _Loader(DataLoader):
    """A DataLoader of lists that raises a worker's :class:`DataError` without its traceback."""

    def __init__(self, dataset, **kwargs):
        super().__init__(
            dataset,
            collate_fn=_identity,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # else each iterator would draw from the global one
            **kwargs,
        )

    def __iter__(self):
        for batch in super().__iter__():
            for sample in batch:
                if isinstance(sample, DataError):
                    raise sample
            yield batch


def _identity(batch: list) -> list:
    return batch


def _init_worker(worker_id: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the workers are the parallelism
    # A SIGTERM or Ctrl-C goes to the whole process group. It is the training that has to react, and
    # it needs its workers to finish the step. They end with the process that started them.
    os.setpgid(0, 0)
