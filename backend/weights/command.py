"""`python -m backend weights list | pull | convert | verify | where | remove`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from backend.protocol import UserError
from backend.weights import places, sources
from backend.weights.sources import SOURCES, Source

DTYPES = ("float16", "bfloat16", "float32")
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
LICENCES_FIRST = "Add --yes once you have read the licences above."


def main(arguments: list[str], offline: bool = False) -> int:
    """Runs one action and returns the exit code. `offline`: the user's own environment forbids the network."""
    options = _parser().parse_args(arguments)
    options.offline = offline
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"{error.message} {error.hint}".strip(), file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend weights", description="The models' weights.")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    actions.add_parser("list", help="which models are installed").set_defaults(run=_list)

    pull = actions.add_parser("pull", help="download the released model, convert and install it")
    pull.add_argument("name", choices=["animate3d"])
    pull.add_argument(
        "--from",
        dest="places",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="folders that hold the released files (then nothing is downloaded), or the https:// address of a hub",
    )
    pull.add_argument("--keep", action="store_true", help="keep the downloaded files after the conversion")
    pull.add_argument("--yes", action="store_true", help="accept the licences without being asked")
    pull.add_argument(
        "--revision",
        action="append",
        default=[],
        metavar="SOURCE=REVISION",
        help=f"another commit, tag or branch of a source ({', '.join(source.name for source in SOURCES)})",
    )
    pull.set_defaults(run=_pull)

    convert = actions.add_parser("convert", help="convert released or fine-tuned files into a model's folder")
    convert.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folders that hold the released files")
    convert.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the model's folder, replaced")
    convert.set_defaults(run=_convert)
    for action in (pull, convert):
        action.add_argument("--motion", type=Path, metavar="FILE", help="a fine-tuned checkpoint of motion modules")
        action.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="how weights are stored")

    verify = actions.add_parser("verify", help="check that installed weights are whole")
    verify.add_argument("weights", nargs="?", default="starter", help="starter (default), animate3d, or a folder")
    verify.add_argument("--keys", type=Path, metavar="FILE", help="compare the full-size network with a list of keys")
    verify.set_defaults(run=_verify)

    where = actions.add_parser("where", help="print the folder where a model is, or would be")
    where.add_argument("weights", nargs="?", default="animate3d", help="animate3d (default), starter, or a folder")
    where.set_defaults(run=_where)

    remove = actions.add_parser("remove", help="delete an installed model")
    remove.add_argument("name", choices=places.NAMES)
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.set_defaults(run=_remove)
    return parser


def _list(options: argparse.Namespace) -> None:
    for name in places.NAMES:
        folder = places.place(name)
        if not (folder / places.CONFIG).is_file():
            print(f"{name:10} not installed{'':29} {folder}")
            continue
        licence = places.config(folder).get("licence") or "?"
        print(f"{name:10} {places.size(folder) / 1e6:6.0f} MB  {places.dtype(folder):9} {licence:22} {folder}")


def _pull(options: argparse.Namespace) -> None:
    hubs = [place for place in options.places if place.startswith(("http://", "https://"))]
    folders = [Path(place) for place in options.places if place not in hubs]
    wanted = sources.at_revisions(_revisions(options.revision))
    if options.motion:
        wanted = tuple(source for source in wanted if source.name != "motion")
    target = places.place(options.name)
    _show_licences(wanted)
    if folders:
        _install(_find(wanted, folders, options.motion), target, options.dtype)
    else:
        _download(options, wanted, hubs[0] if hubs else None, target)
    print(f"Installed {options.name} in {target}.")


def _revisions(settings: list[str]) -> dict[str, str]:
    """`--revision SOURCE=REVISION` as a table."""
    table = dict(setting.partition("=")[::2] for setting in settings)
    names = [source.name for source in SOURCES]
    for name, revision in table.items():
        if name not in names or not revision:
            raise UserError(
                f"There is no source “{name}”.", f"Write --revision SOURCE=REVISION, with {', '.join(names)}."
            )
    return table


def _show_licences(wanted: tuple[Source, ...]) -> None:
    for source in wanted:
        size = f"{source.size / 1e9:.2f} GB"
        when = "" if source.needed == "always" else f", {source.needed}"
        print(f"{source.repository} ({size}{when})\n    {source.licence.name}: {source.licence.link}")
        print(f"    {source.licence.summary}")


def _accept(options: argparse.Namespace, question: str, hint: str) -> None:
    """Asks on a terminal; raises `UserError` where nobody says yes."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UserError("Nobody is there to be asked, so nothing was done.", hint)
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("Nothing was done.")


def _find(wanted: tuple[Source, ...], folders: list[Path], motion: Path | None) -> dict:
    """The originals in folders, with the motion adapter only where it is needed."""
    from backend.weights import convert, originals

    required = tuple(source for source in wanted if source.needed == "always")
    found = originals.find_originals(required, folders) | (originals.own_motion(motion) if motion else {})
    if convert.lacks_adapter(found):
        found |= originals.find_originals(tuple(source for source in wanted if source not in required), folders)
    return found


def _download(options: argparse.Namespace, wanted: tuple[Source, ...], endpoint: str | None, target: Path) -> None:
    """Fetches, converts, and lets the downloads go."""
    from backend.weights import fetch

    if options.offline:
        raise fetch.offline()
    _accept(options, "Download these under their licences?", LICENCES_FIRST)
    os.environ["HF_HUB_OFFLINE"] = "0"  # read when huggingface_hub is imported, which happens below
    from backend.weights import convert, originals
    from backend.weights.space import check_space

    hub = fetch.HubSettings(endpoint)
    required = tuple(source for source in wanted if source.needed == "always")
    found = originals.own_motion(options.motion) if options.motion else {}
    plans = [item for source in required for item in fetch.plan(source, hub)]
    converted = sum(item.size for item in plans) * ITEM_BYTES[options.dtype] // 4  # the originals are float32
    check_space([(hub.downloads(), sum(item.missing for item in plans)), (target.parent, converted)])
    found |= fetch.fetch(plans, hub)
    if convert.lacks_adapter(found):
        extra = [item for source in wanted if source not in required for item in fetch.plan(source, hub)]
        check_space([(hub.downloads(), sum(item.missing for item in extra)), (target.parent, converted)])
        found |= fetch.fetch(extra, hub)
    _install(found, target, options.dtype)
    if options.keep:
        print(f"The downloads are in {hub.downloads()}.")
    else:
        shutil.rmtree(hub.downloads(), ignore_errors=True)


def _convert(options: argparse.Namespace) -> None:
    wanted = SOURCES if not options.motion else tuple(source for source in SOURCES if source.name != "motion")
    _show_licences(wanted)
    if options.to.exists() and not (options.to / places.CONFIG).is_file() and any(options.to.iterdir()):
        raise UserError(f"The folder {options.to} holds something else than a model.", "Choose another with --to.")
    _install(_find(wanted, options.folders, options.motion), options.to, options.dtype)
    print(f"Converted into {options.to}.")


def _install(found: dict, target: Path, dtype: str) -> None:
    from backend.weights.convert import ConvertSettings, convert

    print("Converting …", flush=True)
    convert(found, target, ConvertSettings(dtype))


def _verify(options: argparse.Namespace) -> int:
    if options.keys:
        return _verify_keys(options.keys)
    from backend.mv_vdm.checkpoints import verify_manifest

    verify_manifest(places.find(options.weights))
    print(f"{options.weights}: every file is whole.")
    return 0


def _verify_keys(path: Path) -> int:
    """Compares the full-size network with a list of keys: {"keys": {name: {"shape": [...]}}}."""
    import torch

    from backend.mv_vdm.unet import MVVDMUNet

    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["keys"]
        wanted = {name: list(entry["shape"]) for name, entry in listed.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"The list of keys {path} can't be read.", "Choose a file like unet_keys.json.") from None
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in MVVDMUNet().state_dict().items()}
    differing = [name for name in sorted(wanted.keys() | ours.keys()) if wanted.get(name) != ours.get(name)]
    for name in differing:
        print(f"{name}: listed {wanted.get(name, 'not')}, ours {ours.get(name, 'not there')}")
    print(f"{sum(wanted[name] == ours.get(name) for name in wanted)} of {len(wanted)} keys, with their shapes.")
    return 1 if differing else 0


def _where(options: argparse.Namespace) -> None:
    known = options.weights in places.NAMES
    print(places.place(options.weights) if known else places.find(options.weights))


def _remove(options: argparse.Namespace) -> None:
    if options.name == "starter":
        raise UserError("The starter model came with the program and stays.", "Remove the program to remove it.")
    folder = places.place(options.name)
    if not folder.is_dir():
        raise UserError(f"The weights “{options.name}” are not installed.", "There is nothing to remove.")
    _accept(options, f"Delete {folder}, {places.size(folder) / 1e9:.1f} GB?", "Add --yes to delete it unasked.")
    shutil.rmtree(folder)
    print(f"Removed {folder}.")
