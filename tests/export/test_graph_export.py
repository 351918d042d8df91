"""Exported graphs compute what the network computes, on images of any size."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from detectron2.modeling import build_model
from networks import NETWORKS, eager, network, network_cfg, random_image

from d2_pixcontrast.export import InferenceGraph, evaluated_at, network_cost, trace, write_onnx
from d2_pixcontrast.export.__main__ import main
from d2_pixcontrast.export.command import compare
from d2_pixcontrast.export.cost import count_flops
from d2_pixcontrast.export.graph import smallest_side
from d2_pixcontrast.export.onnx_file import run_onnx
from d2_pixcontrast.export.swin import windows_by_index
from d2_pixcontrast.modeling import DECODER_REGISTRY

# Odd, even, smaller and larger than the traced one, in need of padding on either side or on none.
SIZES = [(65, 97), (128, 64), (37, 161)]


# Tracing takes seconds for each. DeepLabV3 is the decoder before the data-set memory, and a pyramid
# is what UPer has beyond the others.
EXPORTED = [name for name in NETWORKS if name not in ("DeepLabV3Decoder", "UPerDecoder")]


def test_every_decoder_is_tested_here():
    assert {name for name, _ in DECODER_REGISTRY} <= set(NETWORKS)


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request):
    """(model, its traced graph) of one decoder."""
    cfg = network_cfg(request.param)
    model = network(cfg)
    return model, trace(InferenceGraph(model, cfg.INPUT.FORMAT))


def assert_equal_logits(model, run):
    for size in SIZES:
        image = random_image(size)
        expected = eager(model, image)
        found = run(image.unsqueeze(0)).squeeze(0)
        assert found.shape == expected.shape
        assert expected.std() > 1  # a network whose logits are all alike shows nothing
        assert (found - expected).abs().max() <= 1e-4, size


def test_torch_export_equals_the_network(exported):
    model, program = exported
    with torch.no_grad():
        assert_equal_logits(model, program.module())


def test_onnx_equals_the_network(exported, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: export)")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, program = exported
    path = tmp_path / "model.onnx"
    write_onnx(program, path, ["a", "ü"], "a short edge of 512")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # the weights are inside
    written = onnx.load(path)
    onnx.checker.check_model(written)
    metadata = {p.key: p.value for p in written.metadata_props}
    assert json.loads(metadata["classes"]) == ["a", "ü"]
    assert metadata["evaluated_at"] == "a short edge of 512"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", [1, 3, "height", "width"])
    assert (logits.name, logits.shape) == ("logits", [1, 8, "height", "width"])
    assert_equal_logits(
        model, lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
    )


@pytest.mark.parametrize("decoder", NETWORKS)
def test_the_graph_takes_raw_images_of_any_size(decoder):
    cfg = network_cfg(decoder)
    model = network(cfg)
    graph = InferenceGraph(model).eval()
    with torch.no_grad():
        assert_equal_logits(model, graph)


UNPADDED = {
    "plain": ("DeepLabV3Decoder", {}),
    "logits of their own size": (
        "DeepLabV3Decoder",
        {"MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS": False},
    ),
    "aligned corners": (
        "FCNDecoder",
        {
            "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS": True,
            "MODEL.TIMM.HRNET_FUSION": "bilinear_aligned",
        },
    ),
    "bilinear fusion": ("FCNDecoder", {"MODEL.TIMM.HRNET_FUSION": "bilinear"}),
}


def unpadded(kind):
    decoder, options = UNPADDED[kind]
    return network(network_cfg(decoder, **{"MODEL.TIMM.SIZE_DIVISIBILITY": 1, **options}))


@pytest.mark.parametrize("kind", UNPADDED)
def test_the_graph_of_images_that_are_not_padded(kind):
    model = unpadded(kind)
    with torch.no_grad():
        assert_equal_logits(model, InferenceGraph(model).eval())


@pytest.mark.parametrize("kind", ["logits of their own size", "bilinear fusion"])
def test_the_traced_graph_of_images_that_are_not_padded(kind):
    model = unpadded(kind)
    program = trace(InferenceGraph(model))
    with torch.no_grad():
        assert_equal_logits(model, program.module())


@pytest.fixture
def small_swin(monkeypatch):
    """A Swin of five blocks, one of them with shifted windows."""
    create = timm.create_model

    def create_small(name, **options):
        return create(name, **options, depths=(2, 1, 1, 1), embed_dim=24, num_heads=(1, 2, 3, 4))

    monkeypatch.setattr(timm, "create_model", create_small)
    levels = ["res2", "res3", "res4", "res5"]
    options = {
        "MODEL.TIMM.NAME": "swin_tiny_patch4_window7_224",
        "MODEL.TIMM.OUTPUT_STRIDE": 32,
        "MODEL.TIMM.OUT_NORM": "LN",
        "MODEL.TIMM.OUT_FEATURES": levels,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": levels,
    }
    return network(network_cfg("UPerDecoder", **options))


def test_swin_is_exported_for_images_above_a_window(small_swin, tmp_path):
    graph = InferenceGraph(small_swin)
    assert smallest_side(graph) == 32 * 7 + 1
    program = trace(graph)  # with timm's views it would not come to an end
    with torch.no_grad():
        for size in [(225, 297), (256, 320), (333, 229)]:
            image = random_image(size)
            found = program.module()(image.unsqueeze(0)).squeeze(0)
            torch.testing.assert_close(found, eager(small_swin, image))
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra: export)")
    write_onnx(program, tmp_path / "model.onnx", ["a"], "")
    found = run_onnx(tmp_path / "model.onnx", image.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(found, eager(small_swin, image), atol=1e-4, rtol=0)


def test_windows_by_index_are_those_of_timm(small_swin):
    graph = InferenceGraph(small_swin).eval()
    for size in [(33, 40), (65, 97), (224, 230)]:
        image = random_image(size).unsqueeze(0)
        with torch.no_grad():
            expected = graph(image)
            with windows_by_index():
                assert torch.equal(graph(image), expected)
            assert torch.equal(graph(image), expected)


def test_images_are_rgb_even_for_models_that_read_bgr():
    cfg = network_cfg("DeepLabV3Decoder", **{"INPUT.FORMAT": "BGR"})
    model, image = network(cfg), random_image((40, 50))
    graph = InferenceGraph(model, "BGR").eval()
    with torch.no_grad():
        found = graph(image.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(found, eager(model, image.flip(0)))
    assert (found - eager(model, image)).abs().max() > 0.1


def test_what_cannot_be_exported_is_named():
    model = network(network_cfg("DeepLabV3Decoder"))
    with pytest.raises(ValueError, match=r"META_ARCHITECTURE built a Linear"):
        InferenceGraph(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"INPUT.FORMAT is 'YUV-BT.601'"):
        InferenceGraph(model, "YUV-BT.601")


@pytest.mark.parametrize("decoder", NETWORKS)
def test_cost_is_that_of_the_plain_network(decoder):
    """A model trained with terms and auxiliary head costs at inference what one without costs."""
    terms = {"MODEL.PIXEL_CONTRAST.MEMORY.ENABLED": True}
    if decoder != "OCRDecoder":  # which has its own
        terms["MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES"] = ["res5"]
    trained = network(network_cfg(decoder, **terms))
    plain_cfg = network_cfg(decoder, **{"MODEL.SEM_SEG_HEAD.TERMS": []})
    plain = build_model(plain_cfg).eval()
    costs = {network_cost(InferenceGraph(m), (64, 96)) for m in (trained, plain)}
    assert len(costs) == 1
    (cost,) = costs
    assert cost.parameters == sum(p.numel() for p in plain.parameters())
    assert cost.gflops > 0.001


def test_fused_attention_is_counted_like_its_two_products():
    query, key, value = (torch.zeros(1, 1, n, c) for n, c in ((6, 4), (10, 4), (10, 8)))
    explicit = torch.nn.Module()
    explicit.forward = lambda q, k, v: (q @ k.transpose(-2, -1)).softmax(-1) @ v
    fused = torch.nn.Module()
    fused.forward = torch.nn.functional.scaled_dot_product_attention
    counts = [count_flops(module, (query, key, value)) for module in (explicit, fused)]
    assert counts[0] == counts[1] == 6 * 10 * (4 + 8)


def test_a_head_of_detectron2_is_exported_as_well():
    options = {"MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead", "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16}
    model = network(network_cfg("DeepLabV3Decoder", **options))
    program = trace(InferenceGraph(model))
    with torch.no_grad():
        assert_equal_logits(model, program.module())


def test_the_command_writes_what_needs_torch_alone(tmp_path, capsys):
    cfg = network_cfg("DeepLabV3Decoder")
    config, weights = tmp_path / "config.yaml", tmp_path / "model.pth"
    config.write_text(cfg.dump())
    torch.save({"model": network(cfg).state_dict()}, weights)
    path = tmp_path / "new" / "model.pt2"
    arguments = ["--config-file", str(config), "--weights", str(weights), "--output", str(path)]
    main(["torch_export", *arguments])
    extra = {"classes.json": "", "evaluated_at.txt": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["classes.json"])[:2] == ["background", "disc"]
    assert extra["evaluated_at.txt"] == "the image's own size"
    printed = capsys.readouterr().out
    assert "model.pt2" in printed and "parameters" in printed and "at most" in printed
    code = (
        "import sys, torch; sys.modules['detectron2'] = sys.modules['d2_pixcontrast'] = None; "
        f"network = torch.export.load({str(path)!r}).module(); "
        "print(tuple(network(torch.zeros(1, 3, 50, 70)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(1, 8, 50, 70)", done.stderr


def test_the_command_refuses_a_file_that_differs(tmp_path):
    graph = InferenceGraph(network(network_cfg("DeepLabV3Decoder"))).eval()
    with torch.no_grad():
        assert "at most 0" in compare(graph, tmp_path, lambda _, image: graph(image))
        with pytest.raises(ValueError, match="differs from the network: logits by up to 0.01"):
            compare(graph, tmp_path, lambda _, image: graph(image) + 0.01)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"d2_pixcontrast\[export\]"):
        write_onnx(None, tmp_path / "model.onnx", [], "")


def test_help_shows_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for command in ("publish", "onnx", "torch_export"):
        assert f"d2_pixcontrast.export {command}" in printed


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "the image's own size"),
        ({"INPUT.MIN_SIZE_TEST": 512, "INPUT.MAX_SIZE_TEST": 0}, "a short edge of 512"),
        (
            {"INPUT.MIN_SIZE_TEST": 512, "INPUT.MAX_SIZE_TEST": 2048},
            "a short edge of 512, a long one of 2048 at most",
        ),
        (
            {"INPUT.FIXED_SIZE_TEST": [473, 400], "TEST.SLIDING.ENABLED": True},
            "473x400 (height x width), in windows of 512x1024 at steps of 341x683 (height x "
            "width), averaging logits",
        ),
    ],
)
def test_what_an_exported_graph_leaves_to_others_is_told(options, words):
    assert evaluated_at(network_cfg("DeepLabV3Decoder", **options)) == words
