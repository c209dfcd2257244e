"""Models on the Hugging Face hub: fetched into its cache, which works without a network too, and pushed."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from openblip.core.errors import UserError, closest
from openblip.core.places import WEIGHT_SUFFIXES, check_model

__all__ = ["locate", "push_folder"]

_SMALL, _WEIGHTS, _PICKLED = ["*.json", "*.txt", "*.model", "*.jinja"], ["*.safetensors"], ["*.bin"]
"""descriptions and tokenizers, with SentencePiece's vocabularies and chat templates; weights; torch's own files"""


def locate(source: Path | str) -> Path:
    """Where a model lies on this machine: `source` itself, or a snapshot of the hub's model of that name.

    A name may end in @REVISION.

    Raises:
        UserError: there is nothing here, and the hub does not give it either.
    """
    path = Path(source)
    if path.exists():
        return path
    check_model(source)
    repo, _, revision = str(source).partition("@")
    try:
        folder = _snapshot(repo, revision or None, _SMALL + _WEIGHTS)
        if not any(folder.glob("*.safetensors")):
            folder = _snapshot(repo, revision or None, _SMALL + _PICKLED)
    except RepositoryNotFoundError as error:
        raise UserError(f"there is no model at {path}{_near(path)}, and the hub has none called {repo}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"there is no model at {path}{_near(path)}; if one of the hub is meant, it is not in the cache, and "
            "the hub cannot be reached or is switched off (HF_HUB_OFFLINE)"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"there is no model at {path}, and the hub did not give {repo}: {error}") from error
    return folder


def _near(path: Path) -> str:
    """A hint at what lies in the same folder and is called nearly so."""
    if path.parent == Path():
        return ""
    try:
        models = sorted(one.name for one in path.parent.iterdir() if one.is_dir() or one.suffix in WEIGHT_SUFFIXES)
    except OSError:
        return ""
    return closest(path.name, models, f"{path.parent}/")


def _snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def push_folder(folder: Path | str, repo: str, *, private: bool = False) -> str:
    """Upload a model's folder to the hub; returns its address there.

    Raises:
        UserError: the hub refuses (no token, no right) or cannot be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a model by OpenBLIP")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"the hub did not take {repo}: {error}; log in with: hf auth login") from error
    return str(address)
