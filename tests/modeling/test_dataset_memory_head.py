"""The data-set memory within the head: losses, updates, what evaluation and PreciseBN leave alone,
and representation-consistent learning."""

import pytest
import torch
from detectron2.modeling import build_sem_seg_head
from detectron2.utils.events import EventStorage
from operator_record import Operators
from test_decoders import IN_FEATURES, SHAPES
from torch import nn
from torch.nn import functional as F

from d2_pixcontrast import inference_config
from d2_pixcontrast.contrast import DatasetMemory, MemoryEntries, nearest_resize
from d2_pixcontrast.modeling import TrainingProgress
from d2_pixcontrast.modeling.aggregation import NetworkOptions, TrainingOptions
from d2_pixcontrast.modeling.aggregation.consistency import consistency_loss
from d2_pixcontrast.modeling.layers import classifier, conv_norm_relu

CLASSES, D, IGNORE = 8, 16, 255
PLUS_PLUS = {
    "KIND": "statistics",
    "MOMENTUM": 0.1,
    "MOMENTUM_SCHEDULE": "constant",
    "CONTEXT_FUSION": "concat",
    "CONTEXT_LOSS_WEIGHT": 1.0,
    "SECOND_PASS": [0.8, 0.6],
}


def memory_cfg(cfg, decoder="DeepLabV3Decoder", terms=(), norm="BN", **options):
    """Dotted keys below MODEL.DATASET_MEMORY with ``__`` for the dot."""
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.DATASET_MEMORY
    head.DECODER, head.IN_FEATURES = decoder, IN_FEATURES[decoder]
    head.TERMS, head.NORM = list(terms), norm
    head.ASPP_CHANNELS, head.CONVS_DIM = D, D
    head.FCN.CHANNELS = D
    head.OCR.CHANNELS, head.OCR.KEY_CHANNELS = D, 8
    node.ENABLED, node.CHANNELS, node.KEY_CHANNELS = True, D, 8
    for key, value in options.items():
        at, _, name = key.rpartition("__")
        (node[at] if at else node)[name] = value
    return cfg


def make_head(cfg, **options):
    torch.manual_seed(0)
    return build_sem_seg_head(memory_cfg(cfg, **options), SHAPES)


def batch(seed=0, size=(64, 96), count=2):
    """Features, and labels in blocks, a band of them void."""
    g = torch.Generator().manual_seed(seed)
    features = {
        name: torch.randn(count, s.channels, size[0] // s.stride, size[1] // s.stride, generator=g)
        for name, s in SHAPES.items()
    }
    labels = nearest_resize(torch.randint(CLASSES, (count, 4, 6), generator=g), size).clone()
    labels[:, :8] = IGNORE
    return features, labels


def losses_of(head, *args, **kwargs):
    return head.train()(*batch(*args, **kwargs))[1]


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not value.equal(before[name])}


@pytest.mark.parametrize("options", [{}, PLUS_PLUS], ids=["mcibi", "mcibi++"])
@pytest.mark.parametrize("decoder", sorted(IN_FEATURES))
def test_every_decoder_trains_and_evaluates(small_cfg, decoder, options):
    if options and decoder == "FCNDecoder":
        options = {**options, "CONTEXT_LOSS_WEIGHT": 0.0}
    head = make_head(small_cfg, decoder=decoder, **options)
    for iteration in range(2):
        losses = losses_of(head, iteration)
    expected = {"loss_sem_seg", "loss_sem_seg_stage1"}
    expected |= {"loss_sem_seg_aux"} if decoder == "OCRDecoder" else set()
    expected |= {"loss_sem_seg_context"} if options and decoder != "FCNDecoder" else set()
    assert set(losses) == expected
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert not [n for n, p in head.named_parameters() if p.grad is None]
    assert head.aggregation.memory.fill_ratio().min() == 1
    head.eval()
    with torch.no_grad():
        logits, _ = head(batch(2, size=(80, 48))[0])
    assert logits.shape == (2, CLASSES, 80, 48) and logits.isfinite().all()


def test_fcns_output_is_what_is_stored(small_cfg):
    head = make_head(small_cfg, decoder="FCNDecoder")
    assert head.aggregation.pixels is None and head.aggregation.context_attention is None
    features, labels = batch()
    seen = []
    head.decoder.register_forward_hook(lambda *call: seen.append(call[2].features))
    head.train()(features, labels)
    expected = DatasetMemory(CLASSES, D)
    expected.update(seen[0], labels, momentum=0.9, ignore_value=IGNORE)
    assert torch.equal(head.aggregation.memory.entries, expected.entries)


def test_the_grid_of_pixel_representations(small_cfg):
    """The deepest feature's by default; other features are for the config to name."""
    aggregation = make_head(small_cfg, decoder="DeepLabV3PlusDecoder").aggregation
    assert aggregation.pixels.names == ["res5"] and aggregation.out_stride == 4
    fine = make_head(small_cfg, decoder="DeepLabV3PlusDecoder", IN_FEATURES=["res5", "res2"])
    assert fine.aggregation.pixels.names == ["res2", "res5"] and fine.aggregation.pixels.stride == 4


@pytest.mark.parametrize("stride", [1, 2])
def test_joined_features_feed_a_decoder_of_one_feature(small_cfg, stride):
    """HRNet with DeepLabV3: the concatenation of its streams, halved on Cityscapes and LIP."""
    cfg = memory_cfg(small_cfg)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.JOIN_STRIDE = stride
    head = build_sem_seg_head(cfg, SHAPES)
    assert head.decoder.out_stride == head.aggregation.out_stride == 4 * stride
    assert head.aggregation.pixels.conv.in_channels == 40
    losses = losses_of(head)
    sum(losses.values()).backward()
    assert not [n for n, p in head.named_parameters() if p.grad is None]
    with torch.no_grad():
        assert head.eval()(batch()[0])[0].shape == (2, CLASSES, 64, 96)


def test_losses_are_those_of_the_logits(small_cfg):
    head = make_head(small_cfg, decoder="OCRDecoder", **PLUS_PLUS, DROPOUT=0.0)
    features, labels = batch()
    seen = []
    head.aggregation.register_forward_hook(lambda *call: seen.append(call[2]))
    losses = head.train()(features, labels)[1]

    def cross_entropy(logits):
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE)

    (output,) = seen
    weights = {"stage1": 0.4, "context": 1.0}
    for name, logits in (("stage1", output.pixel_logits), ("context", output.context_logits)):
        expected = weights[name] * cross_entropy(logits)
        torch.testing.assert_close(losses[f"loss_sem_seg_{name}"], expected)
    torch.testing.assert_close(
        losses["loss_sem_seg"], cross_entropy(head.predictor(output.features))
    )


def test_without_a_memory_nothing_is_there(small_cfg):
    cfg = memory_cfg(small_cfg, decoder="DeepLabV3PlusDecoder")
    cfg.MODEL.DATASET_MEMORY.ENABLED = False
    head = build_sem_seg_head(cfg, SHAPES)
    assert head.aggregation is None and head.joined is None
    assert {name.split(".")[0] for name in head.state_dict()} == {"decoder", "predictor"}
    assert set(losses_of(head)) == {"loss_sem_seg"}


def test_with_one_seed_decoder_and_classifier_start_as_without_a_memory(small_cfg):
    with_memory = make_head(small_cfg).state_dict()
    small_cfg.MODEL.DATASET_MEMORY.ENABLED = False
    torch.manual_seed(0)
    plain = build_sem_seg_head(small_cfg, SHAPES).state_dict()
    assert plain and all(torch.equal(with_memory[k], v) for k, v in plain.items())


@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("labels", ["usual", "void", "one class"])
def test_names_and_edges_are_the_same_in_every_step(small_cfg, start, labels):
    head = make_head(small_cfg, CONSISTENCY__LOSS_WEIGHT=1.0, CONSISTENCY__START=start)
    names = {"loss_sem_seg", "loss_sem_seg_stage1", "loss_memory_consistency"}
    for iteration in range(3):
        features, target = batch(iteration)
        if labels != "usual":
            target[:] = IGNORE if labels == "void" else 3
        head.set_progress(TrainingProgress(iteration=iteration, max_iter=4))
        losses = head.train()(features, target)[1]
        assert set(losses) == names
        head.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
        # The memory that the network has read: an empty one in the first step.
        on = iteration > 0 and iteration / 4 >= start and labels != "void"
        assert (losses["loss_memory_consistency"] > 0) == on
    fill = head.aggregation.memory.fill_ratio()
    assert fill.sum() == {"usual": CLASSES, "void": 0, "one class": 1}[labels]


@pytest.mark.parametrize("decoder", sorted(IN_FEATURES))
def test_what_the_memory_stores_and_attends_to_is_whole(small_cfg, decoder):
    """Dropout stands before the classifiers, not within the decoder."""
    small_cfg.MODEL.SEM_SEG_HEAD.ASPP_DROPOUT = 0.1
    head = make_head(small_cfg, decoder=decoder, DROPOUT=0.25)
    dropouts = (nn.Dropout, nn.Dropout2d)
    shares = {n: m.p for n, m in head.named_modules() if isinstance(m, dropouts)}
    assert {n for n, p in shares.items() if p} == {
        n for n in shares if n.startswith("aggregation.")
    }
    assert {p for p in shares.values() if p} == {0.25}


def test_every_key_reaches_its_place(small_cfg):
    values = {
        "KIND": "features",
        "KEY_CHANNELS": 12,
        "DROPOUT": 0.3,
        "CONTEXT_FUSION": "attention",
        "ENTRIES_PER_CLASS": 3,
        "STRATEGY": "mean",
        "UPDATE_AT": "grid",
        "MOMENTUM": 0.37,
        "MOMENTUM_SCHEDULE": "constant",
        "READ": "hard",
        "STAGE1_LOSS_WEIGHT": 0.41,
        "CONTEXT_LOSS_WEIGHT": 0.43,
        "CONSISTENCY__LOSS_WEIGHT": 0.47,
        "CONSISTENCY__START": 0.53,
        "SECOND_PASS": [0.59, 0.61],
    }
    module = make_head(small_cfg, **values).aggregation
    memory = module.memory
    assert (memory.entries_per_class, memory.strategy, memory.update_at) == (3, "mean", "grid")
    assert module.network == NetworkOptions(
        channels=D,
        key_channels=12,
        norm="BN",
        dropout=0.3,
        fusion="attention",
        context_head=True,
        read="hard",
        second_pass=(0.59, 0.61),
    )
    assert module.training_options == TrainingOptions(
        momentum=0.37,
        schedule="constant",
        stage1_weight=0.41,
        context_weight=0.43,
        consistency_weight=0.47,
        consistency_start=0.53,
    )


def test_terms_read_the_aggregated_map(small_cfg):
    small_cfg.MODEL.PIXEL_CONTRAST.IN_FEATURES = ["decoder"]
    head = make_head(small_cfg, decoder="DeepLabV3PlusDecoder", terms=["PixelContrast"])
    seen = []
    head.aggregation.register_forward_hook(lambda *call: seen.append(call[2].features))
    head.terms["PixelContrast"].register_forward_pre_hook(lambda *call: seen.append(call[1][0]))
    losses = losses_of(head)
    assert "loss_pixel_contrast" in losses
    aggregated, inputs = seen
    assert inputs.features["decoder"] is aggregated
    assert torch.equal(inputs.logits, head.predictor(aggregated))


def test_one_progress_for_all(small_cfg):
    """Counted once in a forward, with terms or without; the trainer's where there is one."""
    small_cfg.MODEL.PIXEL_CONTRAST.IN_FEATURES = ["decoder"]
    head = make_head(small_cfg, terms=["PixelContrast"])
    seen = []
    head.aggregation.update = lambda *args, progress, **kwargs: seen.append(progress) or {}
    head.terms["PixelContrast"].register_forward_pre_hook(
        lambda *call: seen.append(call[1][0].progress)
    )
    losses_of(head)
    losses_of(head)
    head.set_progress(TrainingProgress(7, 9))
    losses_of(head)
    assert [p.iteration for p in seen] == [0, 0, 1, 1, 7, 7]


@pytest.mark.parametrize("schedule, factor", [("lr", 0.3), ("constant", 1.0)])
def test_the_momentum_follows_the_schedule(small_cfg, schedule, factor):
    head = make_head(small_cfg, MOMENTUM=0.5, MOMENTUM_SCHEDULE=schedule)
    seen = []
    head.aggregation.register_forward_hook(lambda *call: seen.append(call[2].pixels.detach()))
    losses_of(head, 0)
    expected = DatasetMemory(CLASSES, D)
    expected.load_state_dict(head.aggregation.memory.state_dict())
    head.set_progress(TrainingProgress(1, 2, lr_factor=0.3))
    losses_of(head, 1)
    expected.update(seen[1], batch(1)[1], momentum=0.5 * factor, ignore_value=IGNORE)
    assert torch.equal(head.aggregation.memory.entries, expected.entries)


@pytest.mark.parametrize("options", [{"CONSISTENCY__LOSS_WEIGHT": 1.0, "READ": "hard"}, PLUS_PLUS])
def test_a_step_waits_for_nothing(small_cfg, options):
    """No operator whose result's value or shape the host needs."""
    head = make_head(small_cfg, **options)
    losses_of(head)
    inputs = batch(1)
    with Operators() as record:
        sum(head.train()(*inputs)[1].values()).backward()
    record.assert_no_sync()


def test_evaluation_reads_and_does_not_write(small_cfg):
    head = make_head(small_cfg)
    losses_of(head)
    before = state_of(head)
    head.eval()
    with torch.no_grad():
        first = head(batch(1)[0])[0]
    head(batch(1)[0])  # with gradients enabled, too
    assert not changed(head, before)
    head.aggregation.memory.reset()
    with torch.no_grad():
        assert not torch.allclose(head(batch(1)[0])[0], first)


def test_training_forwards_without_gradients_leave_the_memory(small_cfg):
    """PreciseBN runs such forwards."""
    head = make_head(small_cfg)
    losses_of(head)
    before = state_of(head.aggregation.memory)
    with torch.no_grad():
        losses = losses_of(head, 1)
    assert "loss_sem_seg_stage1" in losses and not changed(head.aggregation.memory, before)


def test_inference_keeps_the_memory_and_drops_the_rest(small_cfg):
    small_cfg.MODEL.PIXEL_CONTRAST.IN_FEATURES = ["decoder"]
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res3"]
    head = make_head(small_cfg, decoder="DeepLabV3PlusDecoder", terms=["PixelContrast"])
    losses_of(head)
    plain = build_sem_seg_head(inference_config(small_cfg), SHAPES)
    state = head.state_dict()
    plain.load_state_dict({k: state[k] for k in plain.state_dict()})
    assert "aggregation.memory.entries" in plain.state_dict()
    assert not {"terms", "aux_heads"} & {name.split(".")[0] for name in plain.state_dict()}
    with torch.no_grad():
        features = batch(1)[0]
        assert torch.equal(head.eval()(features)[0], plain.eval()(features)[0])


def test_the_second_pass_mixes_the_first_ones_logits_in(small_cfg):
    head = make_head(small_cfg, **PLUS_PLUS)
    losses_of(head)
    features = batch(1)[0]
    with torch.no_grad():
        twice = head.eval()(features)[0]
        aggregated = head.aggregation(features, head.decoder(features).features)
        again = head.aggregation.again(aggregated, head.predictor(aggregated.features))
        expected = F.interpolate(
            head.predictor(again), scale_factor=16, mode="bilinear", align_corners=False
        )
    assert torch.equal(twice, expected)
    assert aggregated.pixel_logits is None  # nobody reads them


def test_scalars(small_cfg):
    head = make_head(small_cfg)
    head.scalars_period = 1
    with EventStorage(0) as storage:
        losses_of(head)
        recorded = {k: v for k, (v, _) in storage.latest().items()}
    norms = head.aggregation.memory.entries.norm(dim=2)
    assert recorded == {
        "memory/fill_ratio": 1.0,
        "memory/norm": pytest.approx(float(norms.mean()), rel=1e-5),
    }


# Representation-consistent learning


def consistency_parts(norm="BN", filled=(0, 2, 5)):
    torch.manual_seed(0)
    hidden, predictor = conv_norm_relu(D, D, 1, norm), classifier(D, CLASSES)
    nn.init.normal_(predictor.weight)
    if norm == "BN":
        hidden.norm.running_mean.normal_()
        hidden.norm.running_var.uniform_(0.5, 2)
    rows = torch.zeros(CLASSES, D)
    rows[list(filled)] = torch.randn(len(filled), D)
    entries = MemoryEntries(rows, torch.arange(CLASSES), (rows != 0).any(1))
    return entries, hidden.train(), nn.Identity(), predictor


def test_consistency_equals_the_naive_mean_over_filled_entries():
    entries, hidden, dropout, predictor = consistency_parts()
    value = consistency_loss(entries, hidden, dropout, predictor)
    expected, norm = 0.0, hidden.norm
    for c in (0, 2, 5):
        x = hidden.weight[:, :, 0, 0] @ entries.rows[c]
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        x = (x * norm.weight + norm.bias).clamp(min=0)
        logits = predictor.weight[:, :, 0, 0] @ x + predictor.bias
        expected += (logits.logsumexp(0) - logits[c]) / 3
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("make_norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_batch_norm_keeps_its_statistics_and_gets_gradients(make_norm):
    """Of all ranks' batch norm as well, which does not even run on a CPU in training."""
    entries, hidden, dropout, predictor = consistency_parts()
    state = hidden.norm.state_dict()
    hidden.norm = make_norm(D).train()
    hidden.norm.load_state_dict(state)
    before = state_of(hidden)
    value = consistency_loss(entries, hidden, dropout, predictor)
    value.backward()
    assert not changed(hidden, before) and hidden.norm.training
    for name, p in (*hidden.named_parameters(), *predictor.named_parameters()):
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", ["BN", ""])
def test_consistency_of_an_empty_memory_is_zero_and_connected(norm):
    entries, hidden, dropout, predictor = consistency_parts(norm, filled=())
    value = consistency_loss(entries, hidden, dropout, predictor)
    value.backward()
    assert value == 0
    assert all(torch.all(p.grad == 0) for m in (hidden, predictor) for p in m.parameters())


def test_consistency_trains_the_final_classifier_alone(small_cfg):
    head = make_head(small_cfg, CONSISTENCY__LOSS_WEIGHT=1.0, CONSISTENCY__START=0.0, DROPOUT=0.0)
    losses_of(head)  # fills the memory
    running = []
    hidden = head.aggregation.hidden.norm
    head.aggregation.register_forward_hook(lambda *_: running.append(hidden.running_mean.clone()))
    losses_of(head)["loss_memory_consistency"].backward()
    assert torch.equal(hidden.running_mean, running[0])  # as the pixels' pass left it
    assert int(hidden.num_batches_tracked) == 2
    touched = {n for n, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n.rsplit(".", 1)[0] for n in touched} == {
        "aggregation.hidden",
        "aggregation.hidden.norm",
        "predictor",
    }


@pytest.mark.parametrize(
    "options, message",
    [
        ({"KIND": "vectors"}, r"DATASET_MEMORY.KIND is 'vectors'; known are \['features'"),
        ({"READ": "sharp"}, "DATASET_MEMORY.READ is 'sharp'"),
        ({"STRATEGY": "median"}, "DATASET_MEMORY.STRATEGY is 'median'"),
        ({"UPDATE_AT": "pixel"}, "DATASET_MEMORY: UPDATE_AT is 'pixel'"),
        ({"ENTRIES_PER_CLASS": 0}, "ENTRIES_PER_CLASS"),
        ({"KIND": "statistics", "ENTRIES_PER_CLASS": 2}, "ENTRIES_PER_CLASS is 2; KIND"),
        ({"CHANNELS": 0}, "DATASET_MEMORY: a memory .* of 0 channels"),
        ({"KEY_CHANNELS": 0}, "DATASET_MEMORY.KEY_CHANNELS has to be above 0, got 0"),
        ({"DROPOUT": 1.0}, r"DROPOUT has to be in \[0, 1\), got 1.0"),
        ({"CONTEXT_FUSION": "sum"}, "CONTEXT_FUSION is 'sum'"),
        ({"MOMENTUM": 0.0}, r"MOMENTUM has to be in \(0, 1\], got 0.0"),
        ({"MOMENTUM": 1.5}, "got 1.5"),
        ({"MOMENTUM_SCHEDULE": "poly"}, "MOMENTUM_SCHEDULE is 'poly'"),
        ({"STAGE1_LOSS_WEIGHT": 0.0}, "STAGE1_LOSS_WEIGHT has to be above 0"),
        ({"CONTEXT_LOSS_WEIGHT": -1.0}, "CONTEXT_LOSS_WEIGHT -1.0"),
        ({"CONSISTENCY__LOSS_WEIGHT": -1.0}, "CONSISTENCY.LOSS_WEIGHT -1.0"),
        ({"CONSISTENCY__START": 400.0}, "CONSISTENCY.START is a fraction"),
        (
            {"CONSISTENCY__LOSS_WEIGHT": 1.0, "CONTEXT_FUSION": "concat"},
            "reads the context as well",
        ),
        ({"SECOND_PASS": [1.0]}, r"SECOND_PASS is \[1.0\]"),
        ({"SECOND_PASS": [1.0, -1.0]}, "SECOND_PASS"),
        ({"IN_FEATURES": ["res2"]}, r"IN_FEATURES is \['res2'\]; the decoder reads \['res5'\]"),
        ({"decoder": "FCNDecoder", "IN_FEATURES": ["res5"]}, "FCNDecoder itself; leave it empty"),
        ({"decoder": "FCNDecoder", "CHANNELS": 8}, r"of 16 channels .*CHANNELS is 8.*FCN.CHANNELS"),
    ],
)
def test_impossible_settings(small_cfg, options, message):
    with pytest.raises(ValueError, match=message):
        make_head(small_cfg, **options)


def test_impossible_join(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.JOIN_STRIDE = 3
    with pytest.raises(ValueError, match="JOIN_STRIDE has to be 0, 1 or 2, got 3"):
        make_head(small_cfg)
