"""What using a BLIP-2 model is predicted to take: its parts without values, and what its language model reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_blip2
import torch

from openblip.checkpoints.outline import outline
from openblip.checkpoints.store import StoredModel, save_model
from openblip.checkpoints.stored import count_parameters
from openblip.cli.entry import main
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.tasks.registry import adapt
from openblip.tasks.usage import model_costs


@pytest.mark.parametrize("kind", ["opt", "t5"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_language_model_is_read_for_each_token(
    kind: small_blip2.Kind, whole: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    language = small_blip2.write_language(tmp_path / kind, kind)
    model = small_blip2.model(language=language)
    stored = StoredModel(model, small_blip2.tokenizer(), {}, language_tokenizer=LanguageTokenizer.load(language))
    save_model(tmp_path / "blip2", stored, whole=whole)
    (tmp_path / "blip2" / "model.safetensors").write_bytes(b"no weights")
    adapter = adapt(outline(tmp_path / "blip2"))
    costs = model_costs(adapter, torch.bfloat16, batch=2, text_tokens=8)
    assert costs.parameters == count_parameters(model)
    own = sum(value.numel() for value in model.llm.hf.parameters())
    if kind == "opt":
        embeddings = model.llm.hf.get_input_embeddings().weight
        tied = embeddings is model.llm.hf.get_output_embeddings().weight
        assert costs.token == 2 * (own - (0 if tied else embeddings.numel()))
        assert (costs.context, costs.prompt) == (0, model.config.qformer.num_queries + 8)
    else:
        assert 0 < costs.token < 2 * own  # the decoder alone writes
        assert costs.context > 0
    assert costs.prefill > costs.token
    small_blip2.make_image(0).save(tmp_path / "0.png")
    row = {"image": "0.png", "caption": "a red bus on a road"}
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps(row), json.dumps(row)]))
    words = ["evaluate", str(tmp_path / "data.jsonl"), "--model", str(tmp_path / "blip2"), "--dry-run"]
    assert main([*words, "--dtype", "bfloat16"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parameters"], told["images"], told["texts"]) == (costs.parameters, 1, 2)
    assert {"captions: writing", "captions: images"} <= told["seconds"].keys()
