"""Downloading the released files through huggingface_hub, with every byte checked.

huggingface_hub 2.4 throws a half-fetched file away when its process ends, which hurts with 3 GB files. So its own
transfer function writes into a `.part` file that the next run goes on with (it fetches 10 MB again at most), in
`HF_HOME/animate3d`; files that are in Hugging Face's cache at the wanted commit are taken from there. huggingface_hub
is imported inside the functions, because it reads `HF_HUB_OFFLINE` and `HF_ENDPOINT` once, on import.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backend.mv_vdm.checkpoints import WeightsError, file_digest
from backend.weights.originals import Original, Originals
from backend.weights.sources import Source

AGAIN = "Run the same command again; it goes on where it stopped."


@dataclass(frozen=True)
class HubSettings:
    """Where from and where to.

    endpoint: a hub's address, else HF_ENDPOINT or huggingface.co.
    folder: of the downloads, else HF_HOME/animate3d.
    """

    endpoint: str | None = None
    folder: Path | None = None

    def downloads(self) -> Path:
        from huggingface_hub import constants

        return self.folder or Path(constants.HF_HOME) / "animate3d"


@dataclass(frozen=True)
class Wanted:
    """One file of a repository at a known commit. Git's own hash stands for small files, SHA-256 for large ones."""

    source: Source
    part: str
    name: str
    commit: str
    size: int
    sha256: str | None
    blob_id: str
    target: Path  # where a download lies when it is complete

    @property
    def unfinished(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def local(self) -> Path:
        """The file itself: from Hugging Face's cache where it is there, else the download."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.source.repository, self.name, revision=self.commit)
        return Path(cached) if isinstance(cached, str) and not self.target.is_file() else self.target

    @property
    def missing(self) -> int:
        """Bytes still to fetch."""
        if self.local.is_file():
            return 0
        have = self.unfinished.stat().st_size if self.unfinished.is_file() else 0
        return self.size - have if have <= self.size else self.size


def plan(source: Source, hub: HubSettings) -> list[Wanted]:
    """What a source's revision holds, asked from the hub. Raises `WeightsError`."""
    from huggingface_hub import HfApi

    names = [name for part in source.parts for name in part.paths]
    with plain_errors(source):
        api = HfApi(endpoint=hub.endpoint)
        commit = api.repo_info(source.repository, revision=source.revision).sha
        infos = {info.path: info for info in api.get_paths_info(source.repository, names, revision=commit)}
    folder = hub.downloads() / source.repository.replace("/", "--") / commit
    wanted = []
    for part in source.parts:
        name = next((name for name in part.paths if name in infos), None)
        if name is None:
            raise WeightsError(
                f"{source.repository} has no file {part.paths[-1]} at its revision {source.revision}.",
                f"Choose another one with --revision {source.name}=….",
            )
        info = infos[name]
        sha256 = info.lfs.sha256 if info.lfs else None
        wanted.append(Wanted(source, part.name, name, commit, info.size, sha256, info.blob_id, folder / name))
    return wanted


def fetch(wanted: list[Wanted], hub: HubSettings) -> Originals:
    """Downloads what is missing and checks all of it; raises `WeightsError`."""
    originals: Originals = {}
    for item in wanted:
        with plain_errors(item.source):
            if not item.local.is_file():
                _download(item, hub)
            digest = file_digest(item.local)
            if not _is_genuine(item, digest) and item.local != item.target:  # damaged in Hugging Face's cache
                _download(item, hub)
                digest = file_digest(item.local)
            if not _is_genuine(item, digest):
                item.target.unlink()
                raise WeightsError(f"The file {item.name} arrived damaged and was not used.", AGAIN)
        originals[item.part] = Original(item.source, item.name, item.local, digest, item.commit)
    return originals


def _download(item: Wanted, hub: HubSettings) -> None:
    """Fetches one file, going on with its `.part`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, logging

    logging.set_verbosity_error()  # it goes on by itself after a short break; nobody needs to read about it
    part = item.unfinished
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file() and part.stat().st_size > item.size:
        part.unlink()
    with part.open("ab") as file:
        http_get(
            hf_hub_url(item.source.repository, item.name, revision=item.commit, endpoint=hub.endpoint),
            file,
            resume_size=file.tell(),
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},  # else offsets count compressed bytes
            expected_size=item.size,
            displayed_filename=f"{item.source.repository.split('/')[1]}/{item.name}",
        )
    part.replace(item.target)


def _is_genuine(item: Wanted, digest: str) -> bool:
    """Whether the file is the one that the hub lists."""
    if item.sha256 is not None:
        return digest == item.sha256
    content = item.local.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == item.blob_id


@contextlib.contextmanager
def plain_errors(source: Source) -> Iterator[None]:
    """Turns what can go wrong between here and a hub into one sentence each."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise offline() from None
    except errors.GatedRepoError:
        hint = "Accept its licence on its page, then log in with: hf auth login"
        raise WeightsError(f"{source.repository} asks for a login.", hint) from None
    except errors.RevisionNotFoundError:
        hint = f"Choose another one with --revision {source.name}=…."
        raise WeightsError(f"{source.repository} has no revision {source.revision}.", hint) from None
    except errors.RepositoryNotFoundError:
        hint = "Look whether it has moved, or choose another hub with --from URL."
        raise WeightsError(f"The hub has no repository {source.repository}, or not for everyone.", hint) from None
    except errors.HfHubHTTPError as error:
        raise WeightsError(f"The hub answered {error.response.status_code} for {source.repository}.", AGAIN) from None
    except OSError as error:
        reason = error.strerror or "the connection broke"
        raise WeightsError(f"The download of {source.repository} stopped: {reason}.", AGAIN) from None
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        raise WeightsError(f"The hub can't be reached for {source.repository}.", AGAIN) from None


def offline() -> WeightsError:
    return WeightsError(
        "The network is switched off by HF_HUB_OFFLINE.",
        "Unset it, or give a folder that holds the released files with --from.",
    )
