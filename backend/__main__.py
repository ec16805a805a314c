"""The backend's command line: `python -m backend serve | run | doctor | weights | train`, each with `--help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Before any library is imported: nothing is ever fetched behind the user's back. Only `weights pull` may lift this.
FORBIDDEN = any(
    os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
# Threads that wait for work sleep instead of spinning: other processes (Blender) have the cores meanwhile. numpy's and
# scipy's matrices are small here, and the threads that OpenBLAS keeps spinning for them took a third of the fit's time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main(arguments: list[str]) -> int:
    """Runs one command. Returns the exit code."""
    if arguments[:1] == ["train"]:
        from backend.training.train import main as train

        return train(arguments[1:]) or 0
    if arguments[:1] == ["weights"]:
        from backend.weights.command import main as weights

        return weights(arguments[1:], offline=FORBIDDEN)
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend", description="Animate3D's backend.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="answer JSON lines on stdin until it ends; what the add-on starts")
    serve.set_defaults(run=_serve)
    run = commands.add_parser("run", help="run one job folder; finished stages are taken over")
    run.add_argument("job", type=Path, metavar="JOB", help="a folder with job.json and subject/")
    run.set_defaults(run=_run)
    doctor = commands.add_parser("doctor", help="check this installation, one line per check")
    doctor.set_defaults(run=_doctor)
    commands.add_parser("weights", help="list, pull, convert, verify or remove models' weights", add_help=False)
    commands.add_parser("train", help="train the starter model", add_help=False)
    return parser


def _serve(options: argparse.Namespace) -> int:
    from backend.serve import serve

    return serve()


def _run(options: argparse.Namespace) -> int:
    from backend import jobs, memory, serve

    def progress(stage: str, step: int, steps: int) -> None:
        if step in (0, steps):
            print(f"{stage} {'…' if step == 0 else 'done'}", flush=True)

    def tell(kind: str, **content: object) -> None:
        print(f"{kind}: {content.get('message') or content.get('path')}", flush=True)

    job = options.job.absolute()
    with serve.logged_to(job if job.is_dir() else None) as log:
        try:
            report = jobs.run_job(job, progress, jobs.Models(), memory.PeakMemory(with_parent=False), tell)
        except KeyboardInterrupt:
            print("Cancelled; run it again to go on.", file=sys.stderr)
            return 130
        except Exception as error:
            told = serve.describe(error)
            place = f" The log is {log}." if told["kind"] == "internal" and log else ""
            print(f"{told['message']} {told['hint']}{place}", file=sys.stderr)
            return 1
    for stage, seconds in report.seconds.items():
        print(f"{stage:8} {seconds:8.1f} s {report.peak_memory_gb[stage]:6.1f} GB")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from backend.doctor import check_all

    return check_all()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
