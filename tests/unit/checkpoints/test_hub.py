"""The hub without a network: its cache is read, its refusals are reported in one sentence, folders are pushed
whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from openblip.checkpoints import hub
from openblip.checkpoints.card import model_card
from openblip.checkpoints.hub import locate, push_folder
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = TextTokenizer.train(["a red bus", "two dogs"] * 3, vocab_size=50)
    torch.manual_seed(0)
    model = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=32))
    save_model(
        tmp_path / "model", StoredModel(model, tokenizer, {"task": "pretrain", "steps": 40, "learning_rate": 0.003})
    )
    return tmp_path / "model"


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds someone/blip, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    repo = cache / "models--someone--blip"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *a, **k: _download(*a, **k, cache_dir=cache, local_files_only=True)
    )
    return cache


_download = hub.snapshot_download


def test_a_cached_model_opens_by_name(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache)  # where no folder has that name
    stored, own = open_model("someone/blip"), open_model(folder)
    for name, value in own.model.state_dict().items():
        assert torch.equal(stored.model.state_dict()[name], value)
    assert locate(f"someone/blip@{COMMIT}") == locate("someone/blip")
    with pytest.raises(UserError, match=r"no model at someone/else; if one of the hub is meant.*HF_HUB_OFFLINE"):
        open_model("someone/else")


def test_what_is_no_name_is_a_missing_path() -> None:
    for source in ("models/none.pth", "/none/at/all", "a b", "nowhere", "nowhere@main"):
        with pytest.raises(UserError, match="there is no model at"):
            locate(source)


def test_all_that_a_tokenizer_needs_is_fetched() -> None:
    needed = [
        *("config.json", "tokenizer.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
        *("sentencepiece.bpe.model", "chat_template.jinja", "additional_chat_templates/tools.jinja"),
    ]
    others = ["tf_model.h5", "flax_model.msgpack", "pytorch_model.bin"]
    patterns = hub._SMALL + hub._WEIGHTS
    assert list(filter_repo_objects([*needed, *others], allow_patterns=patterns)) == needed


class Api:
    """Stands for the hub: keeps what it is sent, or refuses."""

    sent: dict[str, Any]
    refuse = False

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
        if Api.refuse:
            raise HfHubHTTPError("401 Unauthorized", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
        Api.sent = {"repo": repo, "private": private}
        return f"https://hub/{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        Api.sent |= {"files": sorted(path.name for path in Path(folder_path).iterdir())}


def test_a_folder_is_pushed_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", Api)
    assert push_folder(folder, "me/blip", private=True) == "https://hub/me/blip"
    assert Api.sent == {
        "repo": "me/blip",
        "private": True,
        "files": ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
    }
    monkeypatch.setattr(Api, "refuse", True)
    with pytest.raises(UserError, match=r"the hub did not take me/blip: .*hf auth login"):
        push_folder(folder, "me/blip")


def test_the_card_says_what_the_model_is_and_how_it_was_made(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: openblip\npipeline_tag: image-to-text\n")
    for message in ("# BLIP pre-training model", "- task: pretrain", "- steps: 40", "- learning_rate: 0.003"):
        assert message in card
    for command in ("openblip caption", "openblip match", "openblip embed", "model.match("):
        assert command in card


def test_the_hub_reads_the_cards_facts_and_no_value_is_read_as_a_template(folder: Path) -> None:
    facts = ModelCard.load(folder / "README.md").data
    assert (facts.library_name, facts.pipeline_tag, facts.tags) == (
        "openblip",
        "image-to-text",
        ["blip", "image-text"],
    )
    config = open_model(folder).model.config
    card = model_card(config, {"data": "{{ 1 + 1 }} {% if %}", "cut": "a\n---\nb"}, library="transformers")
    assert "- data: {{ 1 + 1 }} {% if %}\n" in card
    assert ModelCard(card).data.library_name == "transformers"
    assert "- nothing was noted" in model_card(config, {})
