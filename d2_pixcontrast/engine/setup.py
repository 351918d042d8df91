"""From the command line to a checked config, and from a config to an evaluation."""

import argparse
import contextlib
import logging
import os
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser as detectron2_argument_parser
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..compat import CfgNode
from ..config import (
    DEFAULTS_KEY,
    add_pixcontrast_config,
    complete_folders,
    inference_config,
    restore_detectron2_defaults,
)
from ..config_errors import check_doubled_keys, with_way_out
from ..config_numbers import check_numbers
from ..data import check_datasets, register_folders_of
from ..modeling import term_classes
from ..plugins import import_plugins
from .checkpoint import SemSegCheckpointer
from .checkpoint_files import write_atomically
from .checkpoint_hooks import PREEMPTED
from .hints import training_hints
from .run_folder import CONFIG_FILE
from .trainer import merge_results

EXAMPLES = """
Examples:

Train on eight GPUs, go on after an interruption:
    $ {prog} --config-file configs/....yaml --num-gpus 8
    $ {prog} --config-file configs/....yaml --num-gpus 8 --resume

Train on the CPU, with other values than the file's:
    $ {prog} --config-file configs/..._cpu.yaml MODEL.DEVICE cpu SOLVER.BASE_LR 0.02

SIGTERM ends the training after the current step with a checkpoint and exit status {preempted}.

Evaluate a checkpoint:
    $ {prog} --config-file configs/....yaml --eval-only MODEL.WEIGHTS output/model_final.pth

... at several scales and mirrored, too:
    $ {prog} --config-file configs/....yaml --eval-only MODEL.WEIGHTS FILE TEST.AUG.ENABLED True

Train on two machines:
    (machine 0)$ {prog} --config-file ... --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
    (machine 1)$ {prog} --config-file ... --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://HOST:PORT
"""


def default_argument_parser(prog: str = "train_net.py") -> argparse.ArgumentParser:
    """Detectron2's arguments, with examples of this project's use.

    ``--dist-url`` is "auto", any free port, where nothing else is said: detectron2's default is one
    port per user, which two trainings on a machine cannot share.
    """
    parser = detectron2_argument_parser(epilog=EXAMPLES.format(prog=prog, preempted=PREEMPTED))
    parser.set_defaults(dist_url="auto")
    return parser


def load_cfg(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """The config of a file and of KEY VALUE pairs, not frozen. Only safe YAML is read.

    The datasets of DATASETS.SEM_SEG_FOLDERS are registered, plugins imported.

    Raises:
        ValueError: there is no such file, a key or value does not fit, a key is there twice, or a
            number is impossible; the message names it.
    """
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    import_plugins(cfg)
    if config_file and not os.path.isfile(config_file):
        raise ValueError(f"--config-file: there is no file {config_file}")
    try:
        if config_file:
            # Before the merge, after which values cannot be told from defaults.
            if CfgNode.load_yaml_with_base(config_file).get(DEFAULTS_KEY) is True:
                restore_detectron2_defaults(cfg)
            cfg.merge_from_file(config_file, allow_unsafe=False)
            check_doubled_keys(config_file)
        complete_folders(cfg, opts)
    except RecursionError as error:
        raise ValueError(f"{config_file}: its _BASE_ leads back to itself") from error
    except (TypeError, AttributeError) as error:  # from yacs, which asks for no form before
        raise ValueError(
            f"{config_file}: it, and every _BASE_ of it, has to map keys to values ({error})"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(
            f"{config_file}: its _BASE_ {error.filename} does not exist; the path is relative to "
            "the file that names it"
        ) from error
    except (KeyError, ValueError, AssertionError, OSError, yaml.YAMLError) as error:
        raise ValueError(f"{config_file}: {with_way_out(cfg, _text(error))}") from error
    of_the_file = cfg.DETECTRON2_DEFAULTS
    if flag := next((text for text in opts or [] if str(text).startswith("--")), None):
        raise ValueError(f"{flag} has to stand before the KEY VALUE pairs")
    try:
        cfg.merge_from_list(opts or [])
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(
            f"command line options {' '.join(opts)}: {with_way_out(cfg, _text(error))}"
        ) from error
    if of_the_file != cfg.DETECTRON2_DEFAULTS:
        raise ValueError(f"{DEFAULTS_KEY} belongs into the config file, which is read with it")
    check_numbers(cfg)
    register_folders_of(cfg)
    return cfg


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run, with its data sets and device checked before any model is built.

    Raises:
        ValueError, FileNotFoundError: what does not fit, in one message.
    """
    cfg = load_cfg(args.config_file, args.opts)
    _check_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch sees no GPU; "
            "append MODEL.DEVICE cpu to train on the CPU"
        )
    if not args.eval_only and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; it has to name a data set to train on")
    # The commands that look at a model have no such argument: they are one process.
    _check_processes(
        cfg.MODEL.DEVICE, getattr(args, "num_gpus", 1), getattr(args, "num_machines", 1)
    )
    if args.eval_only and not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; it has to name a data set to evaluate on")
    if hasattr(args, "num_machines"):
        _check_starter(args.num_machines)
    check_datasets(cfg, train=not args.eval_only)
    if not args.eval_only:
        term_classes(cfg)  # which raises for unknown names
        _check_batch(cfg, args.num_gpus * args.num_machines)
    cfg.freeze()
    return cfg


def _check_processes(device: str, processes: int, machines: int) -> None:
    if processes < 1:
        raise ValueError(
            f"--num-gpus is {processes}; it is the number of processes on this machine, 1 or more, "
            "on the CPU too"
        )
    if not device.startswith("cuda"):
        return
    there = torch.cuda.device_count()
    if processes > there:
        raise ValueError(f"--num-gpus is {processes}, but torch sees {there} on this machine")
    number = torch.device(device).index
    if number is not None and processes * machines > 1:
        raise ValueError(
            f"MODEL.DEVICE is {device!r}, one GPU, for {processes * machines} processes; with "
            "'cuda' each has its own (CUDA_VISIBLE_DEVICES chooses them)"
        )
    if number is not None and number >= there:
        raise ValueError(f"MODEL.DEVICE is {device!r}, but torch sees {there} GPUs, from cuda:0")


def _check_starter(machines: int) -> None:
    """Refuse a process per GPU that torchrun or srun has started: each would be a training of its
    own, by default all in one OUTPUT_DIR."""

    def number(variable: str) -> int:
        return int(os.environ.get(variable, 1))

    starters = []  # name, variable that marks it, variable with the processes, several here?
    if "TORCHELASTIC_RUN_ID" in os.environ:
        several = number("LOCAL_WORLD_SIZE") > 1
        starters.append(("torchrun", "TORCHELASTIC_RUN_ID", "WORLD_SIZE", several))
    # With a terminal, srun's other tasks do not run the program.
    if "SLURM_STEP_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ:
        several = number("SLURM_STEP_NUM_TASKS") > number("SLURM_STEP_NUM_NODES")
        starters.append(("srun", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", several))
    for starter, mark, count, several_here in starters:
        if several_here or number(count) > machines:
            raise ValueError(
                f"{starter} has started {number(count)} of these ({count}), for --num-machines "
                f"{machines}; start one per machine, which starts the --num-gpus processes itself. "
                f"Trainings apart, each with its own OUTPUT_DIR, are started with env -u {mark}"
            )


def _check_batch(cfg: CfgNode, processes: int) -> None:
    size, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and size % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {size}, which is no multiple of REFERENCE_WORLD_SIZE "
            f"{reference}, the processes that it was written for"
        )
    # With a reference each process has as many images as it would have there.
    if not reference and size % processes:
        fitting = [str(n) for n in range(1, size + 1) if size % n == 0]
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {size}, which {processes} processes cannot share evenly; "
            f"{', '.join(fitting)} can. Or take another batch, and BASE_LR in proportion"
        )


def make_output_dir(cfg: CfgNode) -> None:
    """Make OUTPUT_DIR before any process starts, not to find out at the first checkpoint.

    Raises:
        ValueError: that is impossible, or nothing can be written there.
    """
    folder = cfg.OUTPUT_DIR
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"OUTPUT_DIR {folder!r} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"OUTPUT_DIR {folder!r} cannot be written to")


def prepare(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Logging, output folder and seeds of this process: detectron2's ``default_setup``, and a
    logger for this package beside detectron2's own. Other processes than the first one do not know
    the config's own datasets yet.

    ``config.yaml`` is the training's: an evaluation writes its own to ``config_eval.yaml``, and a
    training its own when it has begun, or could be resumed (``Trainer.resume_or_load``).
    """
    import_plugins()
    register_folders_of(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda:"):
        # Detectron2 waits for the current one, and logs its memory.
        torch.cuda.set_device(torch.device(cfg.MODEL.DEVICE))
    with _training_config_kept(cfg.OUTPUT_DIR, args.eval_only):
        default_setup(cfg, args)
    logger = setup_logger(
        cfg.OUTPUT_DIR, comm.get_rank(), name="d2_pixcontrast", abbrev_name="d2_pixcontrast"
    )
    if not args.eval_only:
        for hint in training_hints(cfg, comm.get_world_size()):
            logger.warning(hint)


@contextlib.contextmanager
def _training_config_kept(folder: str, eval_only: bool):
    """Puts back the ``config.yaml`` that was there before; an evaluation's own is kept beside."""
    path = Path(folder) / CONFIG_FILE
    main = comm.is_main_process()
    before = path.read_bytes() if main and path.exists() else None
    yield
    if main:
        if eval_only:
            path.replace(path.with_name("config_eval.yaml"))
        if before is not None:
            write_atomically(path, lambda file: file.write(before))


@contextlib.contextmanager
def one_line_errors(cfg: CfgNode, prog: str = "train_net.py"):
    """Ends the program with one line for bad input; the traceback goes to a file of OUTPUT_DIR.

    ValueError and OSError are what this package and the file system raise for bad input, and
    FloatingPointError a loss that is not finite. A run that has lost one of its processes ends as
    well; that one says why. Anything else is a defect and passes.
    """
    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addFilter(_without_traceback)
    try:
        yield
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        text = _text(error)
        if isinstance(error, RuntimeError):
            cause = _of_a_lost_process(error)
            if not cause:
                raise
            text = f"{cause} ({text})"
        path = os.path.join(cfg.OUTPUT_DIR, f"traceback_rank{comm.get_rank()}.txt")
        with contextlib.suppress(OSError), open(path, "w") as file:
            file.write(traceback.format_exc())
        raise SystemExit(f"{prog}: {text} [traceback in {path}]") from None
    finally:
        loop.removeFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """For detectron2's loop, which logs what :func:`one_line_errors` says in one line."""
    if record.exc_info and issubclass(
        record.exc_info[0], (ValueError, OSError, FloatingPointError)
    ):
        record.exc_info = None
    return True


def evaluate(cfg: CfgNode, trainer_class, resume: bool = False) -> dict:
    """Evaluate MODEL.WEIGHTS (or OUTPUT_DIR's last checkpoint with ``resume``) on DATASETS.TEST.

    The model has neither terms nor auxiliary head: it is the plain one. With TEST.AUG.ENABLED the
    results hold both: "sem_seg" at a single scale and "sem_seg_TTA".

    Raises:
        ValueError: the weights do not fill the model.
        AssertionError: TEST.EXPECTED_RESULTS are not met.
    """
    cfg = inference_config(cfg)
    cfg.freeze()
    model = trainer_class.build_model(cfg)
    checkpointer = SemSegCheckpointer(model, cfg.OUTPUT_DIR, strict=True)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise ValueError("--eval-only needs a checkpoint: append MODEL.WEIGHTS FILE, or --resume")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = trainer_class.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        merge_results(results, trainer_class.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _of_a_lost_process(error: RuntimeError) -> str:
    """What the failure of a collective means; "" = it is another error."""
    if isinstance(error, dist.DistBackendError):  # NCCL's, for all that goes wrong
        return (
            "the processes of this run cannot talk to each other: one has ended, which tells why "
            "itself, or NCCL does not work here, of which NCCL_DEBUG=INFO tells more"
        )
    if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
        return "another process of this run has ended or cannot be reached"
    return ""


def _text(error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def _check_device(device: str) -> None:
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is {device!r}: {_text(error)}") from error
