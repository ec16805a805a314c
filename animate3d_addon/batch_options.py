"""What batch mode is asked to do: the command line and the table of jobs. No bpy in it."""

from __future__ import annotations

import argparse
import csv
import os
import re
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NoReturn

from . import precheck, splat_output
from .shared import protocol

INPUTS = (".glb", ".gltf", ".blend", ".obj", ".fbx", ".ply", ".stl")
OUTPUTS = (".blend", ".glb", ".fbx", ".usdc", ".abc")
FORMS = ("keys", "rig", "points")


@dataclass(frozen=True)
class Options:
    """One job. The fields are the options' names; a table's columns may set each of them."""

    input: str = ""  # empty: the .blend file that Blender has open
    object: str = ""  # empty: every object with a surface
    prompt: str = ""
    output: str = ""
    preset: str = "draft"
    seed: int = 0
    frames: int = 16
    start_frame: int = 1
    frame_step: int = 3
    device: str = "auto"
    memory: str = "auto"
    up: str = "z"  # of a file of Gaussians
    as_: str = "keys"  # what the motion becomes: keys | rig | points
    points: int = 20_000  # of each object's cloud
    weights: str = "auto"  # which is settled, `models.default`, before a job runs
    compile: str = "off"
    steps: int = 0  # of the sampler; 0 or nothing, here and below: as the preset has it
    passes: int = 0
    solver: str = ""
    guidance: str = ""
    coarse_to_fine: str = ""
    negative_prompt: str = ""
    keep_job: str = ""
    report: str = ""

    def job_settings(self) -> protocol.JobSettings:
        """Raises `UserError` where a value makes no sense."""
        weights = self.weights
        if any(c in weights for c in "/\\.") or Path(weights).is_dir():
            weights = str(Path(weights).absolute())  # the backend runs in another folder
        return protocol.JobSettings(
            prompt=self.prompt,
            preset=self.preset,
            seed=self.seed,
            frames=self.frames,
            device=self.device,
            memory=self.memory,
            compile=bool(_switch("compile", self.compile)),
            rig=self.as_ == "rig",
            weights=weights,
            **self._sampler(),
        )

    def _sampler(self) -> dict:
        """How to sample, where these options say so. Raises `UserError`."""
        try:
            guidance = float(self.guidance) if self.guidance else None
        except ValueError:
            raise protocol.UserError(f"The guidance “{self.guidance}” is no number.", "Write one like 7.5.") from None
        return {
            "steps": self.steps or None,
            "passes": self.passes or None,
            "solver": self.solver or None,
            "guidance": guidance,
            "coarse_to_fine": _switch("coarse-to-fine", self.coarse_to_fine),
            "negative_prompt": self.negative_prompt,
        }


def _switch(name: str, value: str) -> bool | None:
    """None where nothing is said. Raises `UserError`."""
    try:
        return {"": None, "off": False, "on": True}[value]
    except KeyError:
        raise protocol.UserError(f"The setting {name} is neither on nor off.", "Write on or off.") from None


class UsageError(Exception):
    """The options themselves are wrong: nothing is run."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].upper() + message[1:] + ".")


def parser() -> argparse.ArgumentParser:
    """The options of `animate_batch.py`."""
    p = _Parser(
        prog="animate_batch.py --",
        description="Animates an object of a file by a sentence, without a window.",
        epilog='Example: blender -b -P animate_batch.py -- --input cactus.glb --prompt "a cactus is swaying" '
        "--output cactus_sways.blend",
    )
    default = Options()
    p.add_argument("--input", help=f"file to animate ({', '.join(INPUTS)}); without it the .blend that Blender opened")
    p.add_argument("--object", metavar="NAME", help="name of the object; without it everything that has a surface")
    p.add_argument("--prompt", help="one sentence: what moves, and how")
    p.add_argument("--output", help=f"file to write ({', '.join(OUTPUTS)}); of Gaussian splats the folder "
                   "of the frames, or a .ply that their names begin with")  # fmt: skip
    p.add_argument("--preset", choices=protocol.PRESETS, help=f"speed or quality; {default.preset} by default")
    p.add_argument("--seed", type=int, metavar="N", help="another seed, another take; 0 by default")
    p.add_argument("--frames", type=int, metavar="N", help=f"frames of the motion; {default.frames} by default")
    p.add_argument("--start-frame", type=int, metavar="N", help="timeline frame of the first; 1 by default")
    p.add_argument("--frame-step", type=int, metavar="N", help="timeline frames from one to the next; 3 by default")
    p.add_argument("--as", dest="as_", choices=FORMS, help="what the motion becomes; shape keys by default")
    p.add_argument("--points", type=int, metavar="N", help=f"of each cloud; {default.points} by default")
    p.add_argument("--up", choices=tuple(protocol.UP_AXES), help="where the top of a .ply of Gaussian splats is; "
                   "z by default")  # fmt: skip
    p.add_argument("--device", choices=protocol.DEVICES, help="auto by default: a GPU where there is one")
    p.add_argument("--memory", choices=protocol.MEMORY_MODES, help="how much the video model may use; auto by default")
    p.add_argument("--compile", choices=("off", "on"), help="let PyTorch compile the video model: minutes at first, "
                   "then faster; off by default")  # fmt: skip
    p.add_argument("--steps", type=int, metavar="N", help="steps of the sampler; as the preset has it by default")
    p.add_argument("--passes", type=int, metavar="N", help="passes of FreeInit; 1 means none")
    p.add_argument("--solver", choices=protocol.SOLVERS, help="DDIM, or DPM-Solver++ or UniPC for few steps")
    p.add_argument("--guidance", metavar="X", help="scale of the guidance by the prompt; 1 means none")
    p.add_argument("--coarse-to-fine", choices=("off", "on"), help="let earlier passes of FreeInit take fewer steps")
    p.add_argument("--negative-prompt", metavar="TEXT", help="what the video should not be")
    p.add_argument("--weights", metavar="W", help="starter, animate3d, or a model folder; by default animate3d where "
                   "it is installed and an NVIDIA GPU has room for it, else starter")  # fmt: skip
    p.add_argument("--keep-job", metavar="DIR", help="keep the job's files there; an interrupted job goes on")
    p.add_argument("--report", metavar="FILE.json", help="write seconds and peak memory of each stage there")
    p.add_argument("--jobs", metavar="TABLE.csv", help="many jobs, one a row; columns are named like these options, "
                   "which give the defaults of empty cells; paths are as on the command line")  # fmt: skip
    return p


def read_options(arguments: list[str]) -> tuple[list[Options | protocol.UserError], list[str], str]:
    """The jobs of a command line, how to call each in a message, and the path of the report.

    A row of the table that makes no sense is an error in its place, so that the others run.

    Raises:
        UsageError: the command line or the table as a whole can't be understood.
    """
    given = {name: value for name, value in vars(parser().parse_args(arguments)).items() if value is not None}
    table, report = given.pop("jobs", None), given.get("report", "")
    options = replace(Options(), **given)
    if table is None:
        missing = [f"--{name}" for name in ("prompt", "output") if name not in given]
        if missing:
            raise UsageError(f"Missing: {' and '.join(missing)}.")
        return [options], [""], report
    rows = _read_table(Path(table), replace(options, report=""))
    jobs = list(rows.values())
    if options.keep_job:
        jobs = [_own_folder(job, number, options.keep_job) for number, job in enumerate(jobs, 1)]
    return jobs, [f"Line {line}: " for line in rows], report


def _own_folder(job: Options | protocol.UserError, number: int, folder: str) -> Options | protocol.UserError:
    if isinstance(job, protocol.UserError) or job.keep_job != folder:
        return job
    return replace(job, keep_job=str(Path(folder) / f"{number:03d}-{Path(job.output).stem}"))


def _read_table(path: Path, defaults: Options) -> dict[int, Options | protocol.UserError]:
    """The table's jobs by line number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"The table {path} can't be read: {error.strerror}.") from None
    except ValueError:
        raise UsageError(f"The table {path} is not UTF-8 text.") from None
    head = text.split("\n", 1)[0]
    # Spreadsheets write semicolons where the comma is the decimal mark.
    delimiter = ";" if ";" in head and "," not in head else "\t" if "\t" in head and "," not in head else ","
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
    try:
        return _table_rows(reader, path, defaults)
    except csv.Error as error:
        raise UsageError(f"The table {path} can't be read: {error}.") from None


def _table_rows(reader, path: Path, defaults: Options) -> dict[int, Options | protocol.UserError]:
    columns = [re.sub(r"[-\s]+", "_", cell.strip().lower().lstrip("-")) for cell in next(reader, [])]
    columns = ["as_" if column == "as" else column for column in columns]  # the bare word is Python's
    known = {field.name: field.type for field in fields(Options) if field.name != "report"}
    unknown = [column for column in columns if column not in known]
    if not columns or unknown or len(set(columns)) != len(columns):
        what = f"has a column “{unknown[0]}” that is no option" if unknown else "needs a first row of distinct columns"
        raise UsageError(f"The table {path} {what}; the columns are {', '.join(known).replace('as_', 'as')}.")
    rows: dict[int, Options | protocol.UserError] = {}
    outputs: dict[Path, int] = {}
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        line = reader.line_num
        try:
            rows[line] = _row(columns, cells, known, defaults)
            first = outputs.setdefault(Path(rows[line].output).absolute(), line)
            if first != line:
                raise protocol.UserError(f"Line {first} writes the same output.", "Give each row its own.")
        except protocol.UserError as error:
            rows[line] = error
    if not rows:
        raise UsageError(f"The table {path} has no rows.")
    return rows


def _row(columns: list[str], cells: list[str], known: dict[str, str], defaults: Options) -> Options:
    if len(cells) > len(columns):
        raise protocol.UserError("There are more cells than columns.", "Put cells that hold a comma in double quotes.")
    values: dict[str, str | int] = {}
    for column, cell in zip(columns, cells, strict=False):
        value = cell.strip()
        if not value:
            continue
        try:
            values[column] = int(value) if known[column] == "int" else value
        except ValueError:
            raise protocol.UserError(f"The {column} “{value}” is no whole number.", "Correct the cell.") from None
    return replace(defaults, **values)


def check_options(options: Options, blend_open: str) -> None:
    """Everything that can be known before the long work.

    Args:
        blend_open: path of the .blend file that Blender has open, or "".

    Raises:
        UserError: naming what is wrong.
    """
    options.job_settings()
    if options.as_ not in FORMS:
        raise protocol.UserError(f"A motion can't become “{options.as_}”.", f"Choose {' or '.join(FORMS)}.")
    if not 100 <= options.points <= 2_000_000:
        raise protocol.UserError(f"A cloud of {options.points} points can't be made.", "Ask for 100 to 2000000.")
    if options.frame_step < 1 or abs(options.start_frame) + options.frame_step * options.frames > 1_000_000:
        raise protocol.UserError("These frames don't fit on the timeline.", "Choose a frame step of 1 or more.")
    source = Path(options.input or blend_open)
    if not options.input and not blend_open:
        raise protocol.UserError("There is no input file.", "Name one with --input.")
    if options.input:
        if source.suffix.lower() not in INPUTS:
            raise protocol.UserError(f"{source.name} can't be read.", f"Readable are {', '.join(INPUTS)}.")
        if not source.is_file():
            raise protocol.UserError(f"There is no file {source}.", "Check the path.")
    if precheck.is_splats(source):
        _check_splats(options, source)
    else:
        check_output(options.output, source)
    if options.report:
        check_writable(Path(options.report))


def _check_splats(options: Options, source: Path) -> None:
    precheck.check_splats(source)
    protocol.SplatSource(options.up)
    if options.as_ != "keys":
        raise protocol.UserError("Gaussian splats become frames of Gaussian splats.", "Leave --as away.")
    if options.object:
        raise protocol.UserError(f"{source.name} holds Gaussian splats, and no objects.", "Leave --object away.")
    if not options.output:
        raise protocol.UserError("There is no output folder.", "Name one with --output.")
    if Path(options.output).suffix.lower() not in ("", ".ply"):
        raise protocol.UserError(f"{Path(options.output).name} can't hold splats.", "Name a folder, or a .ply file.")
    first = splat_output.frame_path(options.output, 0)
    check_writable(first)
    if first.absolute().resolve() == source.absolute().resolve():
        raise protocol.UserError("The output would replace the input.", "Choose another output.")


def check_output(output: str, source: Path) -> None:
    """Raises `UserError` where the output can't be written, or would replace the input."""
    if not output:
        raise protocol.UserError("There is no output file.", "Name one with --output.")
    path = Path(output)
    if path.suffix.lower() not in OUTPUTS:
        raise protocol.UserError(f"{path.name} can't be written.", f"Writable are {', '.join(OUTPUTS)}.")
    check_writable(path)
    if path.absolute().resolve() == source.absolute().resolve():
        raise protocol.UserError("The output would replace the input.", "Choose another output.")


def check_writable(path: Path) -> None:
    """Makes the file's folder, and tries to write there. Raises `UserError`."""
    try:
        if "\0" in str(path):
            raise ValueError("its name holds a zero character")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b" ")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(0, "it is read-only")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise protocol.UserError(f"{path} can't be written: {reason}.", "Choose another place.") from None
