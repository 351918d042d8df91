"""Checkpoints as other trainers write them: their tensors are found, and nothing else happens."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from d2_pixcontrast.conversion import read_foreign_checkpoint
from d2_pixcontrast.engine.weights_file import ALLOW_PICKLE_VARIABLE


@pytest.fixture(autouse=True)
def no_trust(monkeypatch):
    monkeypatch.delenv(ALLOW_PICKLE_VARIABLE, raising=False)


def network(seed=0, prefix=""):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        {
            f"{prefix}backbone.conv1.weight": torch.randn(4, 3, 3, 3, generator=generator),
            f"{prefix}backbone.bn1.num_batches_tracked": torch.tensor(7 + seed),
            f"{prefix}head.bias": torch.randn(5, generator=generator),
        }
    )


def written(tmp_path, data, **options):
    path = tmp_path / "theirs.pth"
    torch.save(data, path, **options)
    return str(path)


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert {n: v.dtype for n, v in found.items()} == {n: v.dtype for n, v in expected.items()}


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "optimizer": OPTIMIZER, "epoch": 3},
        lambda state: {"model": state, "optimizer": OPTIMIZER, "cfg": "model = dict()"},
        lambda state: {"optimizer": OPTIMIZER, "net": dict(state)},
    ],
    ids=["bare", "state_dict", "model", "net"],
)
def test_the_network_is_found_wherever_trainers_put_it(tmp_path, layout):
    found = read_foreign_checkpoint(written(tmp_path, layout(network())))
    assert_same(found.state, network())
    assert found.classes is None and found.notes == []


def test_safetensors_are_read_too(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(network(), path)
    found = read_foreign_checkpoint(str(path)).state
    assert found.keys() == network().keys()
    assert all(torch.equal(found[name], value) for name, value in network().items())


def test_the_data_parallel_prefix_goes_where_all_names_have_it(tmp_path):
    path = written(tmp_path, {"state_dict": network(prefix="module.")})
    found = read_foreign_checkpoint(path)
    assert_same(found.state, network())
    (note,) = found.notes
    assert "module." in note
    mixed = {**network(prefix="module."), "extra": torch.zeros(1)}
    found = read_foreign_checkpoint(written(tmp_path, mixed))
    assert_same(found.state, mixed)
    assert found.notes == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    state = network()
    state["backbone.conv1.weight"] = state["backbone.conv1.weight"].to(dtype)
    found = read_foreign_checkpoint(written(tmp_path, state))
    expected = {**network(), "backbone.conv1.weight": state["backbone.conv1.weight"].float()}
    assert_same(found.state, expected)
    (note,) = found.notes
    assert note.startswith("1 tensors of half precision") and "float32" in note


def test_doubles_become_float32_and_counters_stay_whole(tmp_path):
    state = {name: v.double() if v.is_floating_point() else v for name, v in network().items()}
    assert_same(read_foreign_checkpoint(written(tmp_path, state)).state, network())


# ---------------------------------------------------------------- several networks in one file


@pytest.mark.parametrize("name", ["ema_state_dict", "state_dict_ema", "model_ema"])
def test_a_moving_average_is_named_and_taken_when_asked_for(tmp_path, name):
    path = written(tmp_path, {name: network(1), "state_dict": network()})
    found = read_foreign_checkpoint(path)
    assert_same(found.state, network())
    (note,) = found.notes
    assert "state_dict" in note and f"'{name}'" in note and "--copy" in note
    taken = read_foreign_checkpoint(path, copy=name)
    assert_same(taken.state, network(1))
    assert taken.notes == []


def test_an_unknown_copy_is_refused_with_what_there_is(tmp_path):
    path = written(tmp_path, {"ema_state_dict": network(1), "state_dict": network(), "epoch": 3})
    with pytest.raises(ValueError, match=r"theirs.pth holds no network 'teacher'") as caught:
        read_foreign_checkpoint(path, copy="teacher")
    assert "ema_state_dict" in str(caught.value) and "'state_dict'" in str(caught.value)
    assert "epoch" not in str(caught.value)


def test_a_moving_average_alone_is_taken_with_a_note(tmp_path):
    path = written(tmp_path, {"ema_state_dict": network(1), "meta": {"epoch": 3}})
    found = read_foreign_checkpoint(path)
    assert_same(found.state, network(1))
    (note,) = found.notes
    assert "ema_state_dict" in note and "no other network" in note


def with_averages():
    """As mmcv 1.x saves: of each parameter a buffer whose name has underscores for dots."""
    averages = network(1)
    return {
        **network(),
        "ema_backbone_conv1_weight": averages["backbone.conv1.weight"],
        "ema_head_bias": averages["head.bias"],
    }


def test_averages_in_buffers_are_left_out(tmp_path):
    found = read_foreign_checkpoint(written(tmp_path, {"state_dict": with_averages()}))
    assert_same(found.state, network())
    (note,) = found.notes
    assert note.startswith("2 tensors have a moving average") and "--copy ema" in note


def test_averages_in_buffers_are_taken_when_asked_for(tmp_path):
    found = read_foreign_checkpoint(written(tmp_path, {"state_dict": with_averages()}), copy="ema")
    counter = "backbone.bn1.num_batches_tracked"  # has none
    assert_same(found.state, {**network(1), counter: network()[counter]})
    (note,) = found.notes
    assert note.startswith("2 tensors have a moving average") and "is taken" in note


def test_a_network_called_ema_is_a_copy_like_the_others(tmp_path):
    path = written(tmp_path, {"state_dict": network(), "ema": network(1)})
    assert "'ema'" in read_foreign_checkpoint(path).notes[0]
    assert_same(read_foreign_checkpoint(path, copy="ema").state, network(1))


def test_averages_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="theirs.pth holds no moving average"):
        read_foreign_checkpoint(written(tmp_path, {"state_dict": network()}), copy="ema")


def test_an_entry_called_ema_that_is_no_network_hides_nothing(tmp_path):
    path = written(tmp_path, {"state_dict": with_averages(), "ema": 0.999})
    found = read_foreign_checkpoint(path, copy="ema").state
    assert torch.equal(found["head.bias"], network(1)["head.bias"])


def test_buffers_that_average_nothing_stay(tmp_path):
    state = {**network(), "ema_scale": torch.ones(2)}
    assert_same(read_foreign_checkpoint(written(tmp_path, state)).state, state)


# ---------------------------------------------------------------- no network, or no checkpoint


def test_an_optimiser_alone_is_named(tmp_path):
    for data in (OPTIMIZER, {"optimizer": OPTIMIZER, "epoch": 3}):
        with pytest.raises(ValueError, match=r"theirs.pth holds the state of an optimiser"):
            read_foreign_checkpoint(written(tmp_path, data))


def test_entries_without_a_network_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"theirs.pth holds no network; .*'best', 'epoch'"):
        read_foreign_checkpoint(written(tmp_path, {"epoch": 3, "best": 0.7}))
    with pytest.raises(ValueError, match=r"theirs.pth is not the weights .* list"):
        read_foreign_checkpoint(written(tmp_path, [1, 2]))


def contents():
    """{name: (bytes, what is said of them)}."""
    buffer = io.BytesIO()
    torch.save({"state_dict": network()}, buffer)
    whole = buffer.getvalue()
    return {
        "empty": (b"", "is empty"),
        "half": (whole[: len(whole) // 2], "damaged or no checkpoint"),
        "text": (b"<!DOCTYPE html><html>404</html>\n", "damaged or no checkpoint"),
        "pickle": (pickle.dumps({"a": 1}), "damaged or no checkpoint"),
    }


@pytest.mark.parametrize("kind", contents())
def test_damaged_files_get_one_line_with_their_name(tmp_path, kind):
    content, message = contents()[kind]
    path = tmp_path / "theirs.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"theirs.pth.* ?{message}") as caught:
        read_foreign_checkpoint(str(path))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- objects beside the tensors


class Attack:
    """Pickles as a call of os.system."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Settings:
    """An object of a class of theirs, with a state."""

    def __init__(self):
        self.lr = 0.1


@pytest.mark.parametrize("trusted", ["", "1"], ids=["", "trusted"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_not_run_and_its_tensors_are_read(tmp_path, monkeypatch, zipped, trusted):
    """Whatever the environment allows for checkpoints of our own kind."""
    monkeypatch.setenv(ALLOW_PICKLE_VARIABLE, trusted)
    marker = tmp_path / "ran"
    data = {"hook": [Attack(marker)], "state_dict": network(), "settings": Settings()}
    path = written(tmp_path, data, _use_new_zipfile_serialization=zipped)
    found = read_foreign_checkpoint(path)
    assert not marker.exists()
    assert_same(found.state, network())
    (note,) = found.notes
    assert "no tensors" in note and f"{os.system.__module__}.system" in note and "Settings" in note
    torch.load(path, weights_only=False)  # the attack is a real one
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_the_place_of_a_tensor_is_not_run(tmp_path, zipped):
    marker = tmp_path / "ran"
    state = {**network(), "head.evil": Attack(marker)}
    path = written(tmp_path, {"state_dict": state}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"theirs.pth is not the weights .* head.evil"):
        read_foreign_checkpoint(path)
    assert not marker.exists()


def test_a_whole_pickled_network_is_no_state_dict(tmp_path):
    with pytest.raises(ValueError, match=r"theirs.pth"):
        read_foreign_checkpoint(written(tmp_path, torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_numpy_scalars_in_the_meta_data_do_no_harm(tmp_path, zipped):
    meta = {"best": np.float64(0.71), "CLASSES": ("road", "sky"), "seen": {1, 2}}
    data = {"meta": meta, "state_dict": network()}
    path = written(tmp_path, data, _use_new_zipfile_serialization=zipped)
    found = read_foreign_checkpoint(path)
    assert_same(found.state, network())
    assert found.classes == ["road", "sky"]


@pytest.mark.parametrize(
    "meta, expected",
    [
        ({"CLASSES": ("road", "sky"), "PALETTE": [[0, 0, 0]]}, ["road", "sky"]),
        ({"dataset_meta": {"classes": ["road", "sky"]}}, ["road", "sky"]),
        ({"CLASSES": None}, None),
        ({"dataset_meta": {}}, None),
        ("of another kind", None),
    ],
)
def test_class_names_of_mmcv_and_mmengine(tmp_path, meta, expected):
    path = written(tmp_path, {"meta": meta, "state_dict": network()})
    assert read_foreign_checkpoint(path).classes == expected


def test_numbers_beside_the_tensors_are_left_out_and_named(tmp_path):
    path = written(tmp_path, {**network(), "iter": 7})
    found = read_foreign_checkpoint(path)
    assert set(found.state) == set(network())
    assert any("no tensors: iter" in note for note in found.notes)
