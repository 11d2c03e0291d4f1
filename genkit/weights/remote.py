"""The hub and torchvision: the only code of genkit that touches the network, and only for what was named.

Downloads resume, take their final name only when complete, and honour HF_HUB_OFFLINE. A hub model that was fetched once
stays at that commit until another revision is named or `hf download` moves it: two runs use the same weights.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from genkit.errors import DiskFull, ModelError

__all__ = ["HUB_ID", "Choice", "cached_hub", "hub", "hub_digest", "torchvision", "torchvision_file"]

HUB_ID = r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:@\s]+))?(?::(?P<file>[^:\s]+))?"
SAFE = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model")
Choice = Callable[[Sequence[str]], Sequence[str]]
"""From the names of a repository's files those that are wanted."""
PICKLED = ("*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.ckpt")


class HubRef(NamedTuple):
    repo: str
    revision: str
    file: str | None

    @classmethod
    def parse(cls, text: str) -> HubRef:
        match = re.fullmatch(HUB_ID, text)
        if match is None:
            raise ModelError(f"{text[:80]!r} is no hub id; its form is org/name, org/name@revision or org/name:file")
        return cls(match["repo"], match["revision"] or "main", match["file"])

    def commit(self) -> str | None:
        """The commit that this revision had when it was last fetched; None if it never was."""
        from huggingface_hub import constants

        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        folder = Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"
        path = folder / "refs" / self.revision
        return path.read_text("utf-8").strip() if path.is_file() else None


def hub(text: str, patterns: Sequence[str] | Choice | None = None) -> Path:
    """The folder of a hub repository, or one file of it, fetched where it is not here."""
    import huggingface_hub

    ref = HubRef.parse(text)
    revision = ref.commit() or ref.revision
    try:
        if ref.file is not None:
            return Path(huggingface_hub.hf_hub_download(ref.repo, ref.file, revision=revision))
        if callable(patterns):
            patterns = [glob.escape(name) for name in patterns(_files(ref, revision))]
        folder = huggingface_hub.snapshot_download(ref.repo, revision=revision, allow_patterns=list(patterns or SAFE))
        if patterns is None and not any(Path(folder).rglob("*.safetensors")):
            folder = huggingface_hub.snapshot_download(ref.repo, revision=revision, allow_patterns=[*SAFE, *PICKLED])
        return Path(folder)
    except ModelError:
        raise
    except Exception as error:
        raise _hub_error(ref, error) from error


def _files(ref: HubRef, revision: str) -> list[str]:
    """The names of a repository's files; offline, or where the hub does not answer, of those that are here."""
    import huggingface_hub

    folder = _snapshot(ref)
    try:
        if not (huggingface_hub.is_offline_mode() and folder.is_dir()):
            return huggingface_hub.HfApi().list_repo_files(ref.repo, revision=revision)
    except Exception:
        if not folder.is_dir():
            raise
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def cached_hub(text: str) -> Path | None:
    """Where a hub model lies on this machine; None if it was never fetched."""
    ref = HubRef.parse(text)
    path = _snapshot(ref) / (ref.file or "")
    return path if path.exists() else None


def _snapshot(ref: HubRef) -> Path:
    """Where the files of a repository lie at its commit, or would."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{ref.repo.replace('/', '--')}"
    return folder / "snapshots" / (ref.commit() or "-")


def hub_digest(text: str) -> str:
    """ "hub:ORG/NAME@COMMIT[:FILE]": a commit is a hash of everything in it."""
    import huggingface_hub

    ref = HubRef.parse(text)
    commit = ref.commit()
    if commit is None and not huggingface_hub.is_offline_mode():
        try:
            commit = huggingface_hub.HfApi().model_info(ref.repo, revision=ref.revision).sha
        except Exception as error:
            raise _hub_error(ref, error) from error
    return f"hub:{ref.repo}@{commit or ref.revision}" + (f":{ref.file}" if ref.file else "")


def _hub_error(ref: HubRef, error: Exception) -> Exception:
    """One line for each way that the hub says no."""
    import errno

    from huggingface_hub import errors, is_offline_mode

    fetch = f"`hf download {ref.repo}`"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFull(f"no space left to fetch {ref.repo}; HF_HOME moves the cache elsewhere")
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"hub model {ref.repo!r} is gated: accept its terms on its page, then `hf auth login`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(f"the hub has no model {ref.repo!r}, or it is private (`hf auth login`); check the spelling")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"hub model {ref.repo!r} has no revision {ref.revision!r}")
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{ref.repo!r} is no hub id; its form is org/name")
    if is_offline_mode():
        return ModelError(
            f"hub model {ref.repo!r} is not on this machine, and offline mode is on (HF_HUB_OFFLINE): "
            f"{fetch} where there is a network, or name a local folder"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ModelError(f"hub model {ref.repo!r} has no file {ref.file!r}")
    return ModelError(
        f"hub model {ref.repo!r} cannot be fetched ({type(error).__name__}): try again, it resumes; "
        f"or {fetch} elsewhere, or name a local folder"
    )


def torchvision_file(name: str) -> Path:
    """Where torch keeps a torchvision checkpoint ("vgg19", "vgg19@IMAGENET1K_V1"), whether or not it is there."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / _torchvision_url(name).rpartition("/")[2]


def torchvision(name: str) -> Path:
    """A torchvision checkpoint's file, fetched and checked against the hash in its name where it is not here."""
    import torch
    from huggingface_hub import is_offline_mode

    path, url = torchvision_file(name), _torchvision_url(name)
    if path.is_file():
        return path
    remedy = f"get {url}, put it into {path.parent}, or name it: --features-weights FILE, --features or --model"
    if is_offline_mode():
        raise ModelError(f"{path.name} is not on this machine, and offline mode is on (HF_HUB_OFFLINE): {remedy}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path.name} cannot be fetched ({error}): {remedy}") from error
    return path


def _torchvision_url(name: str) -> str:
    from torchvision import models

    network, _, weights = name.partition("@")
    try:
        choices = models.get_model_weights(network)
    except ValueError:
        raise ModelError(f"torchvision has no model {network[:80]!r}") from None
    known = {choice.name: choice for choice in choices}
    if weights and weights not in known:
        raise ModelError(f"torchvision's {network} has no weights {weights[:80]!r}; it has {', '.join(known)}")
    return str((known[weights] if weights else choices.DEFAULT).url)
