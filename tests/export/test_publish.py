"""What `export publish` writes: small, exact, repeatable, without this machine's folders."""

import json

import pytest
import torch
import yaml
from conftest import CONFIGS
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from networks import eager, random_image
from safetensors.torch import load_file

from d2_pixcontrast.engine import SemSegCheckpointer, load_cfg, load_inference_model
from d2_pixcontrast.engine.weights_file import file_sha256
from d2_pixcontrast.export import publish
from d2_pixcontrast.export.__main__ import main
from d2_pixcontrast.export.model_card import _losses

EVALUATION = {"mIoU": 12.345, "pACC": 50.0, "IoU-disc": 20.5, "ACC-disc": 30.0}


@pytest.fixture
def run(small_cfg, tmp_path):
    """(cfg, checkpoint) of a training with everything that publishing leaves out."""
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res5"]
    small_cfg.MODEL.PIXEL_CONTRAST.MEMORY.ENABLED = True
    small_cfg.MODEL.WEIGHTS = "/home/somebody/start.pth"
    torch.manual_seed(3)
    model = build_model(small_cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    folder = tmp_path / "run"
    checkpointer = SemSegCheckpointer(model, str(folder), optimizer=optimizer)
    folder.mkdir()
    checkpointer.save("model_0000049", iteration=49)
    checkpointer.save("model_final", iteration=59)
    checkpointer.save("model_best", iteration=60)
    return small_cfg, folder / "model_final.pth"


def test_the_files_fill_the_network_exactly(run, tmp_path):
    cfg, checkpoint = run
    published = publish(cfg, str(checkpoint), tmp_path / "out", safetensors=True)
    trained = load_inference_model(cfg, str(checkpoint))
    stored = torch.load(published.weights, weights_only=True)
    assert list(stored) == ["model"]
    assert stored["model"].keys() == trained.state_dict().keys()
    shared = load_inference_model(load_cfg(str(published.config)), str(published.weights))
    image = random_image((50, 70))
    assert torch.equal(eager(shared, image), eager(trained, image))
    for name, tensor in load_file(published.safetensors).items():
        assert torch.equal(tensor, trained.state_dict()[name])
    # Without this project's checkpointer, too.
    plain = build_model(load_cfg(str(published.config)))
    DetectionCheckpointer(plain).load(str(published.weights))
    assert torch.equal(eager(plain.eval(), image), eager(trained, image))


def test_it_loads_as_the_card_says_where_there_is_no_gpu(run, monkeypatch):
    cfg, checkpoint = run
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_inference_model(cfg, str(checkpoint)).device.type == "cpu"


def test_what_only_training_needs_is_gone(run, tmp_path):
    cfg, checkpoint = run
    published = publish(cfg, str(checkpoint), tmp_path / "out")
    assert published.bytes_before == checkpoint.stat().st_size
    assert published.bytes_after == published.weights.stat().st_size < published.bytes_before / 2
    config, training = (load_cfg(str(p)) for p in (published.config, published.training_config))
    assert config.MODEL.SEM_SEG_HEAD.TERMS == [] and config.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES == []
    assert training.MODEL.SEM_SEG_HEAD == cfg.MODEL.SEM_SEG_HEAD
    assert (
        training.SOLVER == cfg.SOLVER and training.MODEL.PIXEL_CONTRAST == cfg.MODEL.PIXEL_CONTRAST
    )
    for path in (published.config, published.training_config, published.card):
        text = path.read_text()
        assert "/home/somebody" not in text and str(tmp_path) not in text, path


def test_names_hold_the_hash_and_bytes_repeat(run, tmp_path):
    cfg, checkpoint = run
    a, b = (publish(cfg, str(checkpoint), tmp_path / n, safetensors=True) for n in "ab")
    for path, other in zip((a.weights, a.safetensors), (b.weights, b.safetensors)):
        assert path.name == other.name and path.read_bytes() == other.read_bytes()
        assert path.stem == f"model_final_{file_sha256(path)[:8]}"
    assert a.card.read_text() == b.card.read_text()
    # Publishing what was published changes nothing.
    again = publish(load_cfg(str(a.config)), str(a.weights), tmp_path / "again")
    assert again.weights.name == a.weights.name


def test_the_wrapper_is_gone(small_cfg, tmp_path):
    head = small_cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.WRAPPED, head.NORM = "ContrastWrapperHead", "SemSegFPNHead", "BN"
    model = build_model(small_cfg)
    SemSegCheckpointer(model, str(tmp_path)).save("model_final")
    published = publish(small_cfg, str(tmp_path / "model_final.pth"), tmp_path / "out")
    config = load_cfg(str(published.config))
    assert (config.MODEL.SEM_SEG_HEAD.NAME, config.MODEL.SEM_SEG_HEAD.WRAPPED) == (
        "SemSegFPNHead",
        "",
    )
    plain = build_model(config)
    plain.load_state_dict(torch.load(published.weights, weights_only=True)["model"])
    assert torch.equal(plain.sem_seg_head.predictor.weight, model.sem_seg_head.predictor.weight)
    assert "SemSegFPNHead" in published.card.read_text().splitlines()[0]


def test_a_memory_that_the_network_reads_stays(small_cfg, tmp_path):
    small_cfg.MODEL.DATASET_MEMORY.ENABLED = True
    small_cfg.MODEL.DATASET_MEMORY.CHANNELS = 16
    small_cfg.MODEL.DATASET_MEMORY.KEY_CHANNELS = 8
    model = build_model(small_cfg)
    memory = model.sem_seg_head.aggregation.memory
    memory.entries.copy_(torch.rand(memory.entries.shape))
    SemSegCheckpointer(model, str(tmp_path)).save("model_final")
    published = publish(small_cfg, str(tmp_path / "model_final.pth"), tmp_path / "out")
    shared = load_inference_model(load_cfg(str(published.config)), str(published.weights))
    assert torch.equal(shared.sem_seg_head.aggregation.memory.entries, memory.entries)
    image = random_image((50, 70))
    assert torch.equal(eager(shared, image), eager(model.eval(), image))
    card = published.card.read_text()
    assert card.startswith("# DeepLabV3PlusDecoder with a dataset-level memory, ")
    assert "| Memory | 1 entry of 16 channels for each class (MCIBI) |" in card


def test_the_card_names_all_losses(run, tmp_path):
    cfg, checkpoint = run
    cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS = [1.0] * 8
    cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "hard_pixel_mining"
    card = publish(cfg, str(checkpoint), tmp_path / "out").card.read_text()
    losses = "hard pixel mining, classes weighted, auxiliary head on res5 (0.4), PixelContrast"
    assert f"| Losses | {losses} |" in card and "Memory" not in card
    small = load_cfg(str(CONFIGS / "quick_schedules" / "shapes_mcibi_instant_test.yaml"))
    assert _losses(small) == [
        "cross-entropy",
        "stage 1 of the memory (0.4)",
        "consistency of the memory (1)",
    ]


def test_the_card_names_plugins_that_the_config_may_need(run, tmp_path, monkeypatch):
    cfg, checkpoint = run
    monkeypatch.setenv("PIXCONTRAST_PLUGINS", "json,string")
    card = publish(cfg, str(checkpoint), tmp_path / "out").card.read_text()
    assert "Plugins" in card and "json, string" in card


def test_folders_of_ones_own_data_are_not_told(run, tmp_path):
    cfg, checkpoint = run
    node = {"IMAGES": "/home/somebody/images", "LABELS": "/home/somebody/l/", "CLASSES": "c.txt"}
    cfg.DATASETS.SEM_SEG_FOLDERS = CfgNode({"shapes_sem_seg_train": node})
    published = publish(cfg, str(checkpoint), tmp_path / "out")
    text = published.training_config.read_text()
    assert "/home/somebody" not in text and "c.txt" not in text and "rhombus" in text
    own = yaml.safe_load(text)["DATASETS"]["SEM_SEG_FOLDERS"]["shapes_sem_seg_train"]
    assert (own["IMAGES"], own["LABELS"]) == ("images", "l")


def test_commands_of_the_card_work_for_ones_own_data(run, made_up_dataset, tmp_path):
    cfg, checkpoint = run
    folder, name = made_up_dataset[1], "of_the_card_alone"
    node = {"IMAGES": str(folder / "images"), "LABELS": str(folder / "labels")}
    cfg.DATASETS.SEM_SEG_FOLDERS = CfgNode({name: {**node, "CLASSES": [*"abcde"]}})
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    published = publish(cfg, str(checkpoint), tmp_path / "out")
    train_net, predict = (
        published.card.read_text().split("```bash\n")[1].split("```")[0].split("python ")[1:]
    )
    words = train_net.replace("\\\n", "").split()
    options = words[words.index("MODEL.WEIGHTS") :]
    assert options[1] == published.weights.name
    folders = {f"DATASETS.SEM_SEG_FOLDERS.{name}.{kind}": node[kind] for kind in node}
    assert options[2::2] == list(folders) and options[3::2] == ["DIR", "DIR"]
    try:
        load_cfg(str(published.config), [word for pair in folders.items() for word in pair])
        assert len(DatasetCatalog.get(name)) == 3
    finally:
        DatasetCatalog.remove(name), MetadataCatalog.remove(name)
    assert "-m d2_pixcontrast.predict --config-file config.yaml" in predict


def test_the_card_of_public_data_sets_no_folder(run, tmp_path):
    cfg, checkpoint = run
    assert "SEM_SEG_FOLDERS" not in publish(cfg, str(checkpoint), tmp_path / "out").card.read_text()


@pytest.mark.parametrize(
    "weights, schedule",
    [
        ("model_final.pth", "| 60 iterations, batches"),
        ("model_best.pth", "| 60 iterations, batches"),
        ("model_0000049.pth", "| checkpoint of iteration 50 of 60, batches"),
    ],
)
def test_the_card_says_how_far_the_training_was(run, tmp_path, weights, schedule):
    cfg, checkpoint = run
    published = publish(cfg, str(checkpoint.with_name(weights)), tmp_path / "out")
    (line,) = (x for x in published.card.read_text().splitlines() if x.startswith("| Schedule"))
    assert schedule in line


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("SOLVER.BASE_LR", 0.5, "SOLVER.BASE_LR"),
        ("DATASETS.TRAIN", ("camvid_sem_seg_train",), "DATASETS.TRAIN"),
        ("SEED", 77, "SEED"),
        ("MODEL.WEIGHTS", "model_best.pth", "MODEL.WEIGHTS"),
        ("OUTPUT_DIR", "elsewhere", None),
    ],
)
def test_another_config_than_the_runs_is_told(run, tmp_path, caplog, key, value, named):
    cfg, checkpoint = run
    own = checkpoint.with_name("config.yaml")
    own.write_text(cfg.dump())
    cfg.merge_from_list([key, value])
    publish(cfg, str(checkpoint), tmp_path / "out")
    messages = [r.getMessage() for r in caplog.records if str(own) in r.getMessage()]
    assert len(messages) == (named is not None)
    assert not messages or f"wrong: {named} of the given config is not" in messages[0]


def test_keys_of_another_version_are_no_other_config(run, tmp_path, caplog):
    cfg, checkpoint = run
    own = yaml.safe_load(cfg.dump())
    del own["SOLVER"]["POLY_LR_END"]
    own["SOLVER"]["OF_OLD"] = 1
    checkpoint.with_name("config.yaml").write_text(yaml.safe_dump(own))
    publish(cfg, str(checkpoint), tmp_path / "out")
    assert not [r for r in caplog.records if "may be wrong" in r.getMessage()]


def test_files_of_the_run_are_not_overwritten(run, tmp_path):
    cfg, checkpoint = run
    own = checkpoint.with_name("config.yaml")
    own.write_text(cfg.dump())
    with pytest.raises(ValueError, match=r"run holds a config\.yaml .*run/published"):
        publish(cfg, str(checkpoint), checkpoint.parent)
    assert own.read_text() == cfg.dump()
    publish(cfg, str(checkpoint), checkpoint.parent / "published")
    publish(cfg, str(checkpoint), checkpoint.parent / "published")  # once more
    (tmp_path / "README.md").touch()
    with pytest.raises(ValueError, match=r"holds a README\.md"):
        publish(cfg, str(checkpoint), tmp_path)


def test_colours_of_a_file_of_classes_stay(run, tmp_path):
    """Elsewhere there is no such file."""
    cfg, checkpoint = run
    name = "classes_of_a_file"
    (tmp_path / "classes.txt").write_text("".join(f"c{i} {i} {2 * i} 9\n" for i in range(8)))
    node = {"IMAGES": "a", "LABELS": "b", "CLASSES": str(tmp_path / "classes.txt")}
    path = tmp_path / "mine.yaml"
    content = yaml.safe_load(cfg.dump())
    content["DATASETS"] = {"SEM_SEG_FOLDERS": {name: node}, "TRAIN": [name], "TEST": [name]}
    path.write_text(yaml.safe_dump(content))
    try:
        published = publish(load_cfg(str(path)), str(checkpoint), tmp_path / "out")
        MetadataCatalog.remove(name), DatasetCatalog.remove(name)
        load_cfg(str(published.config))
        assert MetadataCatalog.get(name).stuff_colors == [(i, 2 * i, 9) for i in range(8)]
    finally:
        MetadataCatalog.remove(name), DatasetCatalog.remove(name)


def metrics(folder, *records):
    lines = [
        json.dumps({"iteration": i, **{f"sem_seg/{k}": v + i for k, v in EVALUATION.items()}})
        for i in records
    ]
    (folder / "metrics.json").write_text("\n".join([*lines, json.dumps({"iteration": 60})]))


@pytest.mark.parametrize("weights, score", [("model_0000049.pth", 49), ("model_final.pth", 60)])
def test_the_card_has_the_scores_of_these_weights(run, tmp_path, weights, score):
    """The evaluation at the end of 60 iterations is recorded under 60, its checkpoint under 59."""
    cfg, checkpoint = run
    metrics(checkpoint.parent, 29, 49, 60)
    card = publish(cfg, str(checkpoint.with_name(weights)), tmp_path / "out").card.read_text()
    assert f"| mIoU | {12.345 + score:.2f} |" in card
    assert f"| disc | {20.5 + score:.2f} |" in card
    assert "shapes_sem_seg_val" in card


def test_the_card_has_the_scores_of_every_data_set(run, tmp_path):
    cfg, checkpoint = run
    cfg.DATASETS.TEST = ("shapes_sem_seg_val", "shapes_sem_seg_train")
    record = {f"{name}/sem_seg/mIoU": 10.0 + i for i, name in enumerate(cfg.DATASETS.TEST)}
    (checkpoint.parent / "metrics.json").write_text(json.dumps({"iteration": 60, **record}))
    card = publish(cfg, str(checkpoint), tmp_path / "out").card.read_text()
    scores = card.split("## Scores")[1].split("## Use")[0]
    val, train = (scores.index(text) for text in cfg.DATASETS.TEST)
    assert val < scores.index("| mIoU | 10.00 |") < train < scores.index("| mIoU | 11.00 |")


def test_a_torn_line_of_the_records_is_passed_over(run, tmp_path):
    cfg, checkpoint = run
    metrics(checkpoint.parent, 60)
    with (checkpoint.parent / "metrics.json").open("a") as file:
        file.write('\n{"iteration": 61, "total_lo')
    card = publish(cfg, str(checkpoint), tmp_path / "out").card.read_text()
    assert "| mIoU | 72.34 |" in card or "| mIoU | 72.35 |" in card


def test_scores_of_other_weights_are_not_taken(run, tmp_path):
    cfg, checkpoint = run
    metrics(checkpoint.parent, 29, 49)
    card = publish(cfg, str(checkpoint), tmp_path / "out").card.read_text()
    assert "mIoU" not in card and "Not known" in card


def test_scores_from_a_file(run, tmp_path):
    cfg, checkpoint = run
    results = tmp_path / "sem_seg_evaluation.json"
    results.write_text(json.dumps({"dataset": "mine", "num_images": 7, "sem_seg": EVALUATION}))
    card = publish(cfg, str(checkpoint), tmp_path / "out", results=results).card.read_text()
    assert "mine, 7 images" in card and "| mIoU | 12.35 |" in card
    absent = {**EVALUATION, "IoU-disc": None}  # a class that the data set does not show
    results.write_text(json.dumps({"sem_seg": absent}))
    card = publish(cfg, str(checkpoint), tmp_path / "out", results=results).card.read_text()
    assert "| disc | - |" in card
    results.write_text("[]")
    with pytest.raises(ValueError, match="--results .*sem_seg_evaluation.json"):
        publish(cfg, str(checkpoint), tmp_path / "out", results=results)


def test_the_card_says_what_a_reader_asks(run, tmp_path):
    cfg, checkpoint = run
    published = publish(cfg, str(checkpoint), tmp_path / "out")
    card = published.card.read_text()
    for text in (
        "shapes_sem_seg_train",
        "mobilenetv2_035",
        "DeepLabV3PlusDecoder",
        "PixelContrast",
        "60 iterations, batches of 4 images",
        "crop 96x96",
        "GFLOPs at 96x96",
        f"torch {torch.__version__}",
        file_sha256(published.weights),
        published.weights.name,
        "4. rhombus",
        "licences",
    ):
        assert text in card, text


def test_the_command_shows_both_sizes(run, tmp_path, capsys):
    cfg, checkpoint = run
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    main(
        ["publish", "--config-file", str(config), "--weights", str(checkpoint)]
        + ["--output", str(tmp_path / "out"), "--safetensors"]
    )
    before, after, *paths = capsys.readouterr().out.splitlines()
    assert str(checkpoint) in before and "MiB" in before
    assert "model_final_" in after and "MiB" in after and "%" in after
    assert len(paths) == 4


def test_errors_fit_in_a_line(run, tmp_path):
    _, checkpoint = run
    config = str(CONFIGS / "CamVid-SemanticSegmentation" / "deeplabv3plus_mobilenetv2_ce_cpu.yaml")
    for weights, message in ((checkpoint, "does not fit"), (tmp_path / "no.pth", "no file")):
        with pytest.raises(SystemExit, match=message) as caught:
            main(
                ["publish", "--config-file", config, "--weights", str(weights)]
                + ["--output", str(tmp_path / "out")]
            )
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
