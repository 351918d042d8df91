"""Weights files by others: nothing in them is run, and what is wrong with them fits in a line."""

import io
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import INSTANT_TEST, ROOT
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from safetensors.torch import save_file

from d2_pixcontrast import inference_config
from d2_pixcontrast.engine import SemSegCheckpointer
from d2_pixcontrast.engine.restricted_pickle import ForbiddenGlobalError, load_restricted
from d2_pixcontrast.engine.weights_file import (
    ALLOW_PICKLE_VARIABLE,
    file_sha256,
    read_weights_file,
)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    """{name: object whose unpickling makes the folder ``marker``}."""
    system = Call(os.system, f"mkdir {marker}")
    array = np.empty(1, dtype=object)
    array[0] = system
    return {
        "system": system,
        "eval": Call(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "nested": {"model": OrderedDict(a=[(np.zeros(2), {"b": system})]), "__author__": "x"},
        "array": {"model": {"a": array}, "__author__": "x"},
        "getattr": Call(getattr, Call(__import__, "os"), "getcwd"),
    }


def pickle_of(data, protocol=2):
    return pickle.dumps(data, protocol=protocol)


def torch_file_of(data, zipped):
    buffer = io.BytesIO()
    torch.save(data, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


FORMATS = {
    "pickle.pkl": pickle_of,
    "python3.pkl": lambda data: pickle_of(data, protocol=5),
    "pickle.pth": pickle_of,
    "zip.pth": lambda data: torch_file_of(data, zipped=True),
    "legacy.pth": lambda data: torch_file_of(data, zipped=False),
}


@pytest.mark.parametrize("attack", attacks("x"))
@pytest.mark.parametrize("name", FORMATS)
def test_code_in_a_file_is_refused(tmp_path, name, attack):
    marker, path = tmp_path / "ran", tmp_path / name
    path.write_bytes(FORMATS[name](attacks(marker)[attack]))
    with pytest.raises(ValueError, match=name) as caught:
        read_weights_file(str(path))
    message = str(caught.value)
    assert not marker.exists()
    assert "\n" not in message
    assert "would run code" in message and f"{ALLOW_PICKLE_VARIABLE}=1" in message, message


def test_the_attacks_are_real(tmp_path):
    for name, data in attacks(tmp_path / "ran").items():
        if name != "getattr":
            pickle.loads(pickle_of(data))
            assert (tmp_path / "ran").is_dir(), name
            (tmp_path / "ran").rmdir()


@pytest.mark.parametrize("name", ["pickle.pkl", "zip.pth"])
def test_the_variable_allows_what_was_refused(tmp_path, monkeypatch, caplog, name):
    path = tmp_path / name
    path.write_bytes(FORMATS[name]({"model": {}, "ran": attacks(tmp_path / "ran")["eval"]}))
    monkeypatch.setenv(ALLOW_PICKLE_VARIABLE, "0")
    with pytest.raises(ValueError, match="refused"):
        read_weights_file(str(path))
    monkeypatch.setenv(ALLOW_PICKLE_VARIABLE, "1")
    assert read_weights_file(str(path))["model"] == {}
    assert (tmp_path / "ran").is_dir()
    assert any(ALLOW_PICKLE_VARIABLE in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_protocols_that_the_safe_loader_does_not_know(
    tmp_path, monkeypatch, recwarn, protocol, zipped
):
    path, state = tmp_path / "new.pth", {"model": {"a": torch.arange(3.0)}}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(state, path, **options)
    monkeypatch.delenv(ALLOW_PICKLE_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="new.pth is refused.*cannot decode") as caught:
        read_weights_file(str(path))
    message = str(caught.value)
    assert f"{ALLOW_PICKLE_VARIABLE}=1" in message and "weights_only" not in message
    assert "\n" not in message and not recwarn.list
    monkeypatch.setenv(ALLOW_PICKLE_VARIABLE, "1")
    assert torch.equal(read_weights_file(str(path))["model"]["a"], torch.arange(3.0))


def save_script(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("flag", ["", "1"])
@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.write_text("<!DOCTYPE html>"), r"not a file of torch.save"),
        (lambda path: path.write_bytes(pickle_of({"a": 1}, 4)), r"not a file of torch.save"),
        (save_script, "a TorchScript archive"),
    ],
)
def test_other_files_called_pth(tmp_path, monkeypatch, write, message, flag):
    write(tmp_path / "x.pth")
    monkeypatch.setenv(ALLOW_PICKLE_VARIABLE, flag)
    with pytest.raises(ValueError, match=rf"x.pth: .*no checkpoint \({message}\)$") as caught:
        read_weights_file(str(tmp_path / "x.pth"))
    assert "weights_only" not in str(caught.value)


def test_a_trusted_file_that_fails_gets_one_line(tmp_path, monkeypatch):
    path = tmp_path / "raises.pth"
    path.write_bytes(torch_file_of({"model": Call(int, "no number")}, zipped=True))
    monkeypatch.setenv(ALLOW_PICKLE_VARIABLE, "1")
    with pytest.raises(ValueError, match="raises.pth: .*no number"):
        read_weights_file(str(path))


def arrays():
    generator = np.random.default_rng(0)
    return {
        "float": generator.normal(size=(2, 3)).astype(np.float32),
        "half": generator.normal(size=4).astype(np.float16),
        "fortran": np.asfortranarray(generator.normal(size=(3, 2))),
        "int": np.arange(5),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(1.5),
        "bool": np.array([True, False]),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_arrays_and_plain_containers_pass(protocol, package):
    """In files of either numpy, whichever is installed."""
    data = {"model": OrderedDict(arrays()), "n": [1, (2.5, None), {"a"}, "ü", b"\xff", True]}
    content = pickle_of(data, protocol)
    if protocol < 4:  # from 4 on, a name is stored with its length
        content = content.replace(b"numpy._core", package.encode())
        assert package.encode() in content
    found = load_restricted(io.BytesIO(content))
    assert found["n"] == data["n"]
    assert list(found["model"]) == list(data["model"])
    for name, array in data["model"].items():
        assert found["model"][name].dtype.str[1:] == array.dtype.str[1:]
        np.testing.assert_array_equal(found["model"][name], array)


def test_python_2_strings_are_read_as_latin1():
    """What Python 2 writes for {"w": numpy.float32 array}: 8-bit strings, old module names."""
    content = (
        b"\x80\x02}q\x00U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00"
        b"\x00\xc0tbs."
    )
    pickletools.dis(content, out=io.StringIO())  # it is well-formed
    found = load_restricted(io.BytesIO(content))
    np.testing.assert_array_equal(found["w"], np.array([1, -2], np.float32))


@pytest.mark.parametrize(
    "module, name",
    [
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "fromfile"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("copyreg", "_reconstructor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("collections", "OrderedDict.fromkeys"),
    ],
)
def test_names_beyond_arrays_are_not_even_looked_up(module, name):
    for protocol, content in {
        2: f"c{module}\n{name}\n.".encode(),
        4: b"\x8c%c%b\x8c%c%b\x93." % (len(module), module.encode(), len(name), name.encode()),
    }.items():
        with pytest.raises(ForbiddenGlobalError, match=name):
            load_restricted(io.BytesIO(bytes([0x80, protocol]) + content))


def test_codecs_that_compress_are_refused():
    content = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R."
    with pytest.raises(ForbiddenGlobalError, match="codec zip"):
        load_restricted(io.BytesIO(content))


@pytest.fixture
def plain(small_cfg):
    return build_model(inference_config(small_cfg))


def detectron2_zoo_file(model):
    """As `detectron2`'s zoo writes it: numpy arrays below "model"."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {"model": state, "__author__": "Detectron2 Model Zoo"}


def test_zoo_pickles_load_without_a_flag(small_cfg, plain, tmp_path, monkeypatch):
    monkeypatch.delenv(ALLOW_PICKLE_VARIABLE, raising=False)
    torch.manual_seed(1)
    trained = build_model(inference_config(small_cfg))
    path = tmp_path / "model_final_f10217.pkl"  # detectron2's six digits are no SHA-256
    path.write_bytes(pickle_of(detectron2_zoo_file(trained)))
    SemSegCheckpointer(plain, strict=True).load(str(path))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name


def test_caffe2_pickles_load_into_a_resnet(tmp_path):
    """MSRA's names and layout, with the momentum of their solver, matched by heuristics."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.DEVICE = "cpu"
    model = torch.nn.ModuleDict({"backbone": build_backbone(cfg)})
    blobs = {
        "conv1_w": np.random.default_rng(0).normal(size=(64, 3, 7, 7)).astype(np.float32),
        "conv1_w_momentum": np.zeros((64, 3, 7, 7), np.float32),
        "res_conv1_bn_s": np.full(64, 3, np.float32),
    }
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle_of({"blobs": blobs}))
    SemSegCheckpointer(model).load(str(path))
    state = model.state_dict()
    np.testing.assert_array_equal(state["backbone.stem.conv1.weight"].numpy(), blobs["conv1_w"])
    assert (state["backbone.stem.conv1.norm.weight"] == 3).all()


@pytest.fixture
def files(plain, tmp_path):
    """Good files of all formats."""
    torch.save({"model": plain.state_dict()}, tmp_path / "good.pth")
    save_file(plain.state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "good.pkl").write_bytes(pickle_of(detectron2_zoo_file(plain)))
    return tmp_path


@pytest.mark.parametrize("ending", ["pth", "pkl", "safetensors"])
def test_damaged_files_get_one_clear_line(plain, files, ending):
    good = (files / f"good.{ending}").read_bytes()
    damaged = {
        "empty": (b"", "is empty"),
        "half": (good[: len(good) // 2], "damaged or no checkpoint"),
        "start": (good[:10], "damaged or no checkpoint"),
        "page": (b"<!DOCTYPE html><html></html>", "damaged or no checkpoint"),
    }
    for name, (content, message) in damaged.items():
        path = files / f"{name}.{ending}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.{ending}.*{message}") as caught:
            SemSegCheckpointer(plain, strict=True).load(str(path))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["list.pth", "list.pkl", "text.pth", "text.pkl", "object.pkl"])
def test_files_without_weights_say_so(plain, tmp_path, name):
    content = {
        "list": [1, 2],
        "text": {"model": {"sem_seg_head.predictor.weight": "abc"}, "__author__": "x"},
        "object": {"model": {"a": np.array([{}], dtype=object)}, "__author__": "x"},
    }[name.split(".")[0]]
    (tmp_path / name).write_bytes(
        FORMATS["zip.pth" if name.endswith("pth") else "pickle.pkl"](content)
    )
    with pytest.raises(ValueError, match=f"{name}.* not the weights of a model"):
        SemSegCheckpointer(plain).load(str(tmp_path / name))


@pytest.mark.parametrize("ending", ["pth", "pkl", "safetensors"])
def test_another_architecture_gets_one_clear_line(small_cfg, files, ending):
    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    small_cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = 16
    other = build_model(inference_config(small_cfg))
    with pytest.raises(ValueError, match=rf"good.{ending} does not fit .* \(first: ") as caught:
        SemSegCheckpointer(other, strict=True).load(str(files / f"good.{ending}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["pth", "pkl", "safetensors"])
def test_the_hash_in_the_name_is_checked(plain, files, ending):
    digits = file_sha256(files / f"good.{ending}")
    for length in (8, 64):
        right = files / f"model_final_{digits[:length]}.{ending}"
        shutil.copy(files / f"good.{ending}", right)
        SemSegCheckpointer(plain, strict=True).load(str(right))
    wrong = files / f"model_final_{digits[8:16]}.{ending}"
    shutil.copy(files / f"good.{ending}", wrong)
    with pytest.raises(ValueError, match=f"{wrong.name} is not the file .*{digits[:8]}"):
        SemSegCheckpointer(plain, strict=True).load(str(wrong))


@pytest.mark.parametrize("name", ["model_10000000.pth", "model_final.pth", "net_deadbeef.pth"])
def test_names_of_other_forms_say_nothing(plain, files, name):
    shutil.copy(files / "good.pth", files / name)
    SemSegCheckpointer(plain, strict=True).load(str(files / name))


@pytest.mark.parametrize("name", ["pickle.pkl", "zip.pth"])
def test_on_the_command_line_too(tmp_path, name):
    marker, path = tmp_path / "ran", tmp_path / name
    data = {"model": {"a": np.zeros(1)}, "__author__": "x", "b": attacks(marker)["system"]}
    path.write_bytes(FORMATS[name](data))
    arguments = ["--config-file", INSTANT_TEST, "--eval-only", "MODEL.WEIGHTS", path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop(ALLOW_PICKLE_VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "train_net.py", *map(str, arguments), "OUTPUT_DIR", tmp_path / "run"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and not marker.exists()
    last = done.stderr.strip().splitlines()[-1]
    assert f"{ALLOW_PICKLE_VARIABLE}=1" in last and str(path) in last
    assert "Traceback" not in done.stderr and "torch.jit" not in done.stderr
