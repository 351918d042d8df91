"""The stream of training samples is a function of the seed and the position."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.data import DataError, TrainLoader, build_test_loader, build_train_loader


class Draw:
    """A mapper that reports its input and a random number."""

    def __call__(self, dataset_dict):
        return dataset_dict["id"], np.random.rand(), torch.rand(1).item()


def _loader(size=10, batch=4, **kwargs):
    kwargs = {"seed": 3, **kwargs}
    return TrainLoader([{"id": i} for i in range(size)], Draw(), total_batch_size=batch, **kwargs)


def _take(loader, count):
    return list(itertools.islice(loader, count))


@pytest.fixture
def cfg(tmp_path):
    """A configuration with a registered dataset of five small files."""
    name = f"loader_{tmp_path.name}"
    dicts = []
    for i in range(5):
        image, label = tmp_path / f"{i}.jpg", tmp_path / f"{i}.png"
        noise = np.random.RandomState(i).randint(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(image)
        Image.fromarray(noise[..., 0] % 3).save(label)
        dicts.append({"file_name": str(image), "sem_seg_file_name": str(label), "image_id": i})
    DatasetCatalog.register(name, lambda: dicts)
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.merge_from_list(
        ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", (16, 16), "SOLVER.IMS_PER_BATCH", 2]
        + ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "DATALOADER.NUM_WORKERS", 0, "SEED", 1]
        + ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
    )
    yield cfg
    DatasetCatalog.pop(name)


def test_every_epoch_shows_every_sample_once_in_another_order():
    ids = [sample[0] for batch in _take(_loader(), 10) for sample in batch]
    epochs = [ids[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_sample_is_augmented_differently_in_every_epoch():
    draws = [sample[1:] for batch in _take(_loader(), 10) for sample in batch]
    assert len(set(draws)) == 40


def test_workers_do_not_matter():
    assert _take(_loader(num_workers=2), 8) == _take(_loader(num_workers=0), 8)


def test_resume_continues_the_stream():
    whole = _take(_loader(), 9)
    resumed = _loader()
    resumed.start_iter = 5
    assert _take(resumed, 4) == whole[5:]


def test_ranks_share_the_batches_of_one_process():
    whole = _take(_loader(batch=6), 5)
    parts = [_take(_loader(batch=6, rank=rank, world_size=3), 5) for rank in range(3)]
    assert [list(itertools.chain(*batches)) for batches in zip(*parts)] == whole


def test_batch_larger_than_the_dataset():
    (batch,) = _take(_loader(size=3, batch=7), 1)
    assert len(batch) == 7 and sorted(sample[0] for sample in batch[:3]) == [0, 1, 2]


def test_seed_matters_and_can_be_restored_late():
    assert _take(_loader(seed=4), 3) != _take(_loader(seed=3), 3)
    late = _loader(seed=4)
    iterator = iter(late)  # as detectron2's trainer does in its constructor
    late.seed, late.start_iter = 3, 2
    assert next(iterator) == _take(_loader(seed=3), 3)[2]


def test_global_generators_are_left_alone():
    np.random.seed(0), torch.manual_seed(0)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(0), torch.manual_seed(0)
    _take(_loader(), 3), _take(_loader(num_workers=1), 1)
    assert (np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.parametrize(("batch", "world_size"), [(5, 2), (0, 1), (1, 2)])
def test_indivisible_batch_is_refused(batch, world_size):
    with pytest.raises(ValueError, match=rf"IMS_PER_BATCH \({batch}\).*\({world_size}\)"):
        _loader(batch=batch, rank=0, world_size=world_size)


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="empty"):
        _loader(size=0)


def test_lambda_mappers_can_be_sent_to_workers():
    loader = TrainLoader([{"id": 0}], lambda d: d["id"], total_batch_size=1, seed=0)
    from d2_pixcontrast.data.build import _Stream

    stream = pickle.loads(pickle.dumps(_Stream(loader.dataset, loader.mapper, 0)))
    assert stream[5] == 0


def _same(left, right):
    return all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["sem_seg"], b["sem_seg"])
        for batches in zip(left, right)
        for a, b in zip(*batches)
    )


def test_train_loader_from_config(cfg):
    batches = _take(build_train_loader(cfg), 3)
    assert all(len(batch) == 2 for batch in batches)
    assert batches[0][0]["image"].shape == (3, 16, 16)
    assert _same(batches, _take(build_train_loader(cfg), 3))
    cfg.DATALOADER.NUM_WORKERS = 2
    assert _same(batches, _take(build_train_loader(cfg), 3))


def test_a_seed_is_drawn_and_kept(cfg):
    cfg.SEED = -1
    np.random.seed(0), torch.manual_seed(0)
    first = build_train_loader(cfg)
    np.random.seed(0), torch.manual_seed(0)
    second = build_train_loader(cfg)
    assert first.seed != second.seed  # whatever detectron2 seeded
    second.seed = first.seed
    assert _same(_take(first, 2), _take(second, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
    assert len(loader) == 5
    batches = list(loader)
    assert [batch[0]["image_id"] for batch in batches] == list(range(5))
    assert all(len(batch) == 1 and batch[0]["label"].shape == (30, 40) for batch in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_file_stops_with_one_line(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    path = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[2]["sem_seg_file_name"]
    Image.new("L", (40, 30), 77).save(path)
    for loader in build_train_loader(cfg), build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        with pytest.raises(DataError, match="2.png has value 77") as error:
            _take(loader, 5)
        assert "\n" not in str(error.value)
