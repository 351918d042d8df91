"""How processes are started, and how they meet and part."""

import os
import socket
import sys

import pytest
import torch

from d2_pixcontrast.engine import default_argument_parser, launch, processes


def test_processes_meet_at_an_address_of_their_own_under_torchrun(monkeypatch):
    """Its store is served by torchrun itself, and older torch would look for it anywhere."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    found = []
    monkeypatch.setattr(
        torch.multiprocessing, "spawn", lambda *_, **__: found.append({**os.environ})
    )
    launch(None, 2, device="cpu")
    assert "TORCHELASTIC_USE_AGENT_STORE" not in found[0]


@pytest.mark.parametrize(
    "device, takes_gpu_first, starter",
    [("cuda", True, "detectron2"), ("cuda", False, "own"), ("cpu", True, "own")],
)
def test_detectron2_starts_the_processes_where_each_takes_its_gpu_first(
    monkeypatch, device, takes_gpu_first, starter
):
    used = []
    monkeypatch.setattr(processes, "LAUNCH_TAKES_GPU_FIRST", takes_gpu_first)
    monkeypatch.setattr(processes.engine, "launch", lambda *_: used.append("detectron2"))
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *_, **__: used.append("own"))
    launch(None, 2, device=device)
    assert used == [starter]


@pytest.fixture
def calls(monkeypatch):
    """What a worker does, with nothing behind it."""
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("gpu", device)))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *args, **kw: calls.append(kw))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: calls.append("end"))
    monkeypatch.setattr(processes, "create_local_process_group", calls.append)
    monkeypatch.setattr(processes.comm, "synchronize", lambda: calls.append("all meet"))
    return calls


def test_a_gpu_is_the_process_own_before_it_meets_the_others(calls):
    """In the place of detectron2 0.5's own worker: process 1 of the second machine, two on each."""
    processes._worker(1, lambda: calls.append("main"), True, 4, 2, 1, "tcp://host:1", ())
    group = calls.pop(1)
    assert calls == [("gpu", 1), 2, "all meet", "main", "all meet", "end"]
    assert (group["rank"], group["world_size"]) == (3, 4)
    assert group["device_id"] == torch.device("cuda", 1)
    assert group["timeout"].total_seconds() == 1800


@pytest.mark.parametrize("on_gpus", [True, False])
def test_a_process_that_fails_does_not_wait_for_the_others(calls, on_gpus):
    """As ending NCCL's group would."""
    with pytest.raises(SystemExit, match="the reason"):
        processes._worker(0, sys.exit, on_gpus, 2, 2, 0, "tcp://host:1", ("the reason",))
    assert ("end" in calls) != on_gpus


def test_two_trainings_on_a_machine_do_not_share_a_port():
    assert default_argument_parser().parse_args([]).dist_url == "auto"


def test_a_port_that_is_taken_is_told_before_any_process_starts():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} of this machine .*in use.*another"):
            launch(None, 2, dist_url=f"tcp://127.0.0.1:{port}", device="cpu")
        with pytest.raises(ValueError, match="several machines need"):
            launch(None, 1, num_machines=2, device="cpu")
    with pytest.raises(ValueError, match=r"--dist-url is tcp://host; it needs a port"):
        launch(None, 1, num_machines=2, dist_url="tcp://host", device="cpu")
