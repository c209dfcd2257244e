"""Every kind of models: written and opened by one dictionary, described by what is true of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.checkpoints.card import model_card
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.recognise import KINDS
from openblip.checkpoints.store import FAMILIES, StoredModel, family, model_facts, open_model, save_model
from openblip.cli.entry import COMMANDS
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import QFormerConfig, TowerConfig
from openblip.models.dual import BlipDual, DualConfig
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.tower import make_tower
from openblip.models.vqa import BlipVqa, VqaConfig
from openblip.tasks.registry import adapt
from openblip.tasks.scoring import MEASURES

WORDS = TextTokenizer.train(["a red bus on a road", "two dogs"] * 3, vocab_size=60)
SIZES = blip_config("nano", vocab_size=WORDS.vocab_size, image_size=32)
MATCHING = ["match", "embed", "retrieve", "classify"]
MORE = ["score", "explain"]


def models() -> list[tuple[str, Any, list[str]]]:
    """A small model of every kind, its "model_type", and what it can do."""
    parts: Any = {"vision": SIZES.vision, "text": SIZES.text}
    whole = KINDS[type(SIZES)].model(SIZES)
    tower = TowerConfig(source="own", own=replace(SIZES.vision, final_norm=False))
    width = SIZES.vision.width
    qformer = QFormerConfig(
        num_queries=4, width=32, depth=2, num_heads=4, inner_width=64, memory_width=width,
        vocab_size=WORDS.vocab_size, max_positions=32,
    )  # fmt: skip
    Blip2Config(vision=tower, qformer=qformer, embed_dim=16)
    return [
        ("blip", whole, ["caption", *MATCHING, *MORE]),
        ("blip", whole.part(encoder=True, decoder=False), [*MATCHING, *MORE]),
        ("blip", whole.part(encoder=False, decoder=True), ["caption", *MORE]),
        ("blip-vqa", BlipVqa(VqaConfig(**parts)), ["ask", "score"]),
        ("blip-nlvr", BlipNlvr(NlvrConfig(**parts)), ["judge"]),
        ("blip-dual", BlipDual(DualConfig(**parts)), ["embed", "classify", "score"]),
        (
            "blip2",
            Blip2(Blip2Config(vision=tower, qformer=qformer, embed_dim=16), make_tower(tower), None),
            [*MATCHING, "caption", *MORE],
        ),
    ]


def test_every_kind_comes_back_and_says_what_it_can(tmp_path: Path) -> None:
    seen = set()
    for number, (kind, model, can) in enumerate(models()):
        save_model(tmp_path / str(number), StoredModel(model.eval(), WORDS, {"task": kind}))
        stored = open_model(tmp_path / str(number))
        assert type(stored.model) is type(model)
        assert stored.info == {"task": kind}
        theirs = model.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in stored.model.state_dict().items())
        facts = model_facts(stored)
        assert facts["can"] == can
        assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        parts = facts["parameters_by_part"].values()
        assert all(parts)
        assert sum(parts) == facts["parameters"]
        assert all(family(stored).sizes(model.config).values())
        seen.add(type(model.config))
    assert seen == set(KINDS), "a kind is missing here"


def test_what_a_model_can_do_is_a_command_that_its_adapter_can_do() -> None:
    """`openblip info` names what the commands then do, and leaves none of it out."""
    named = {"caption", "match", "embed", "ask", "judge", "classify", "score", "explain"}
    for _, model, _ in models():
        can = KINDS[type(model.config)].can(model.config)
        assert set(can) <= COMMANDS.keys()
        adapted = adapt(StoredModel(model, WORDS)).can
        able = {"ask" if what == "answer" else what for what in adapted}
        able |= {"classify"} if adapted & {"embed", "match"} else set()
        able |= {"score"} if adapted & set(MEASURES.values()) else set()
        assert named & set(can) == named & able


def test_the_card_shows_a_command_and_a_call_for_all_that_a_model_can_do() -> None:
    for _, model, can in models():
        card = model_card(model.config, {})
        for ability in set(can) - {"retrieve", "classify", "score", "explain"}:
            assert f"openblip {ability} " in card
        assert f"tags:\n- {'blip-2' if isinstance(model, Blip2) else 'blip'}\n" in card


def test_drawings_of_a_model_that_cannot_be_explained_are_refused() -> None:
    for _, model, _ in models():
        adapter = adapt(StoredModel(model, WORDS))
        if isinstance(model, Blip) or (isinstance(model, Blip2) and model.config.matches):
            assert adapter.need("explain").model is model
        else:
            with pytest.raises(
                UserError, match="heat maps need a BLIP pre-training, captioning or retrieval model"
            ):
                adapter.need("explain")


def test_every_family_has_an_entry() -> None:
    assert {kind.family for kind in KINDS.values()} == set(FAMILIES)
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            '{"format": "openblip", "model_type": "blip-vqo"}',
            'the unknown type "blip-vqo" (did you mean "blip-vqa"?)',
        ),
        ('{"format": "openblip", "model_type": "blip-2"}', 'of the unknown type "blip-2" (did you mean "blip2"?)'),
        ('{"model_type": "clip"}', 'its config.json says "clip", not "blip", "blip-2" or "instructblip"'),
        ("{}", 'its config.json says "unknown", not "blip", "blip-2" or "instructblip"'),
    ],
)
def test_models_of_no_known_kind_are_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError) as refused:
        open_model(tmp_path)
    assert message in str(refused.value)


def test_a_tower_that_transformers_cannot_hold_is_refused_before_transformers_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match='one convolution, this model has stem = "conv"'):
        convert_model(StoredModel(Blip(SIZES), WORDS), tmp_path / "out", to="transformers", part="caption")
    assert not list(tmp_path.iterdir())
