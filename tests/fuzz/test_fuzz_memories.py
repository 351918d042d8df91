"""Memories on every batch: finite and in range, and what the batch has no pixel of stays."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from fuzz_cases import assert_finite, batches, cases
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from d2_pixcontrast.contrast import DatasetMemory, MemoryBank, StatisticsMemory
from d2_pixcontrast.engine import load_cfg

D = 4
MOMENTA = st.sampled_from([0.0, 0.1, 0.9, 1.0])
SHAPES = {"res2": ShapeSpec(channels=6, stride=4), "res5": ShapeSpec(channels=10, stride=8)}


@cases("bank")
@given(
    batch=batches(),
    sizes=st.tuples(*[st.sampled_from(s) for s in ([0, 1, 9], [1, 20], [1, 30])]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    steps=st.integers(1, 4),
)
def test_bank(batch, sizes, dtype, steps):
    names = ("region_size", "pixel_size", "pixels_per_group")
    bank = MemoryBank(batch.num_classes, D, **dict(zip(names, sizes)), dtype=dtype)
    labels = batch.at(batch.grids[0])
    written = torch.zeros(batch.num_classes, dtype=torch.int64)
    some_zero = False
    for step in range(steps):
        embeddings = F.normalize(batch.features(D, batch.grids[0], step).float(), dim=1)
        keys = batch.keys(labels[0].numel(), step)
        bank.enqueue(embeddings, labels, keys, ignore_value=batch.ignore_value)
        for i, image in enumerate(labels):
            for c in image[batch.known(image)].unique().tolist():
                # All-zero embeddings are no entries.
                length = embeddings[i, :, image == c].norm(dim=0)
                some_zero |= bool((length == 0).any())
                written[c] += min(int((length > 0).sum()), sizes[2])
        for entries, store in zip(bank.entries(), bank.stores.values()):
            filled = torch.arange(store.rows.shape[1]) < entries.fill[:, None]
            lengths = store.rows.float().norm(dim=2)
            assert ((lengths - 1).abs() < 0.02)[filled].all()
            assert (lengths == 0)[~filled].all()
        fill = bank.fill_ratio()
        assert fill.shape == (batch.num_classes,) and ((fill >= 0) & (fill <= 1)).all()
    if not some_zero:  # else any of the pixels may be drawn
        assert torch.equal(bank.pixel.written, written)


def check_memory(memory, batch, momentum, steps):
    """Updates and reads; classes without a pixel stay as they were."""
    for step in range(steps):
        features = batch.features(D, batch.grids[0], step)
        if step == 1:
            features[:, :, 0, 0] = torch.nan
        before = memory.entries.clone()
        memory.update(features, batch.labels, momentum=momentum, ignore_value=batch.ignore_value)
        seen = {int(v) for v in batch.labels[batch.known(batch.labels)]}
        absent = [c for c in range(batch.num_classes) if c not in seen]
        assert torch.equal(memory.entries[absent], before[absent])
        probabilities = batch.logits(batch.grids[0]).softmax(1)
        for hard in (False, True):
            read = memory.read(probabilities, hard=hard)
            assert read.shape == (len(batch.labels), memory.read_channels, *batch.grids[0])
            assert_finite(read=read)
        entries = memory.class_entries()
        assert entries.rows.shape == (batch.num_classes * memory.entries_per_class, D)
        assert_finite(entries=entries.rows, fill=memory.fill_ratio())


@cases("features_memory")
@given(
    batch=batches(),
    per_class=st.integers(1, 3),
    strategy=st.sampled_from(["cosine", "mean"]),
    update_at=st.sampled_from(["label", "grid"]),
    momentum=MOMENTA,
    steps=st.integers(1, 4),
)
def test_features_memory(batch, per_class, strategy, update_at, momentum, steps):
    memory = DatasetMemory(
        batch.num_classes,
        D,
        entries_per_class=per_class,
        strategy=strategy,
        update_at=update_at,
    )
    check_memory(memory, batch, momentum, steps)


@cases("statistics_memory")
@given(
    batch=batches(),
    update_at=st.sampled_from(["label", "grid"]),
    momentum=MOMENTA,
    steps=st.integers(1, 4),
)
def test_statistics_memory(batch, update_at, momentum, steps):
    check_memory(
        StatisticsMemory(batch.num_classes, D, update_at=update_at), batch, momentum, steps
    )


@cases("head")
@given(
    batch=batches(legal=True),
    decoder=st.sampled_from(["DeepLabV3Decoder", "FCNDecoder"]),
    kind=st.sampled_from(["features", "statistics"]),
    read=st.sampled_from(["soft", "hard", "zeros"]),
    consistency=st.sampled_from([0.0, 1.0]),
    loss_type=st.sampled_from(["cross_entropy", "hard_pixel_mining"]),
)
def test_a_head_with_a_memory(batch, decoder, kind, read, consistency, loss_type):
    """As much of the road as a batch takes behind the backbone, in two steps and an evaluation."""
    cfg = load_cfg("")
    head, memory = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.DATASET_MEMORY
    head.DECODER, head.NUM_CLASSES, head.NORM = decoder, batch.num_classes, ""
    head.IN_FEATURES = ["res5"] if decoder == "DeepLabV3Decoder" else ["res2", "res5"]
    head.IGNORE_VALUE, head.LOSS_TYPE, head.COMMON_STRIDE = batch.ignore_value, loss_type, 8
    head.ASPP_CHANNELS = head.CONVS_DIM = head.FCN.CHANNELS = D
    memory.ENABLED, memory.KIND, memory.READ = True, kind, read
    memory.CHANNELS, memory.KEY_CHANNELS = D, 4
    memory.CONSISTENCY.LOSS_WEIGHT, memory.CONSISTENCY.START = consistency, 0.0
    torch.manual_seed(batch.seed)
    network = build_sem_seg_head(cfg, SHAPES)
    height, width = batch.grids[0]
    names = set()
    for step in range(3):
        network.train(step < 2)
        features = {
            "res2": batch.features(6, (2 * height, 2 * width), 10 * step).float(),
            "res5": batch.features(10, (height, width), 10 * step + 1).float(),
        }
        result, losses = network(features, batch.labels)
        if step == 2:
            assert result.shape[:2] == (len(batch.labels), batch.num_classes)
            assert_finite(result=result)
            break
        assert_finite(losses=losses)
        network.zero_grad()
        sum(losses.values()).backward()
        assert_finite(gradients={n: p.grad for n, p in network.named_parameters()})
        assert not names or names == set(losses)
        names = set(losses)
