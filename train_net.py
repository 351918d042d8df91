#!/usr/bin/env python
"""Train or evaluate: parses, sets up and launches. ``--help`` shows examples."""

import sys

from torch.multiprocessing import ProcessExitedException

from d2_pixcontrast.engine import (
    PREEMPTED,
    Trainer,
    default_argument_parser,
    evaluate,
    forward_sigterm,
    launch,
    make_output_dir,
    one_line_errors,
    prepare,
    setup_cfg,
)


def main(cfg, args):
    """One process of the run."""
    prepare(cfg, args)
    with one_line_errors(cfg):
        if args.eval_only:
            return evaluate(cfg, Trainer, resume=args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def run(main) -> None:
    """Launch ``main(cfg, args)`` as the command line says; if it fails, exit with one line."""
    args = default_argument_parser().parse_args()
    try:
        cfg = setup_cfg(args)
        make_output_dir(cfg)
        if args.num_gpus * args.num_machines > 1:
            forward_sigterm()
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args),
            device=cfg.MODEL.DEVICE,
        )
    except (ValueError, OSError, ProcessExitedException) as error:
        if getattr(error, "exit_code", None) == PREEMPTED:
            sys.exit(PREEMPTED)
        sys.exit(f"train_net.py: {error}")


if __name__ == "__main__":
    run(main)
