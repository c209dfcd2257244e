"""How texts are generated when a model is measured: as in the papers, or as told, and stored with the figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import miniature
import pytest
import small
import torch
from kept_results import kept_result

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.cli.evaluate import decoding_of, measuring_config
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.generation.config import DecodeConfig
from openblip.models.blip import Blip, blip_config
from openblip.tasks.config import as_sources
from openblip.tasks.decoding import (
    BLIP_PROMPT,
    LONGEST_TEXT,
    RERANK,
    candidates_to_rerank,
    caption_prompt,
    measured_decoding,
    texts_to_retrieve,
)
from openblip.tasks.families.blip2 import Blip2Adapter
from openblip.tasks.registry import adapt


def captioner(info: dict[str, Any] | None = None) -> Any:
    words = TextTokenizer.train(["a picture of an original caption"] * 3, vocab_size=80)
    sizes = blip_config("nano", vocab_size=words.vocab_size, image_size=32)
    torch.manual_seed(0)
    return StoredModel(Blip(sizes), words, info or {})


class _Language:
    def __init__(self, *, encodes: bool) -> None:
        self.is_encoder_decoder = encodes


class _Blip2:
    def __init__(self, *, encodes: bool) -> None:
        self.language = self.llm = _Language(encodes=encodes)


def test_captions_of_blip_are_as_long_as_the_originals_with_their_prompt() -> None:
    """5 to 20 tokens, of which [DEC] and the words of "a picture of" are four."""
    adapter = adapt(captioner({"source_format": "blip"}))
    prompt = caption_prompt(adapter)
    assert prompt == BLIP_PROMPT
    read = adapter.tokenizer.encode([prompt], first="dec", end=False).input_ids.shape[1]
    decode = measured_decoding(adapter, "captioning", {"coco"}, prompt)
    assert decode == DecodeConfig(num_beams=3, min_new_tokens=5 - read, max_new_tokens=20 - read)
    assert measured_decoding(adapter, "captioning", {"nocaps"}, prompt).repetition_penalty == 1.1
    long = measured_decoding(adapter, "captioning", {"coco"}, "a picture of " * 12)
    assert (long.min_new_tokens, long.max_new_tokens) == (0, 10)


def test_a_model_of_ones_own_keeps_its_prompt() -> None:
    assert caption_prompt(adapt(captioner())) == ""
    assert caption_prompt(adapt(captioner({"prompt": "an ", "source_format": "blip"}))) == "an "


def test_answers_are_generated_as_in_the_papers() -> None:
    vqa = adapt(StoredModel(small.vqa_model(), small.vqa_tokenizer()))
    assert measured_decoding(vqa, "answering", {"vqav2"}, "") == DecodeConfig(num_beams=3, max_new_tokens=9)
    for encodes, penalty, least in ((True, -1.0, 0), (False, 0.0, 1)):
        blip2 = Blip2Adapter(_Blip2(encodes=encodes), None)
        assert measured_decoding(blip2, "answering", {"okvqa"}, "") == DecodeConfig(
            num_beams=5, min_new_tokens=least, max_new_tokens=10, length_penalty=penalty
        )
        captions = measured_decoding(blip2, "captioning", {"coco"}, "a photo of")
        # 8 tokens, of which a decoder has read four as its prompt and an encoder-decoder the one it starts from
        assert captions == DecodeConfig(num_beams=5, min_new_tokens=7 if encodes else 4, max_new_tokens=30)


def test_candidates_are_the_papers_on_published_data() -> None:
    assert candidates_to_rerank("blip", {"coco"}) == 256
    assert candidates_to_rerank("blip2", {"coco"}) == candidates_to_rerank("blip", {"flickr30k"}) == 128
    assert candidates_to_rerank("blip", {"nocaps"}) == candidates_to_rerank("blip", ()) == RERANK


def test_texts_to_retrieve_are_cut_as_in_the_papers_programs() -> None:
    """BLIP: data/coco_karpathy_dataset.py, data/video_dataset.py; LAVIS: BlipCaptionProcessor; both: 35 tokens."""
    assert texts_to_retrieve("blip", {"coco"}) == texts_to_retrieve("blip", {"flickr30k"}) == (30, 35)
    assert texts_to_retrieve("blip", {"msrvtt"}) == (40, 35)
    assert texts_to_retrieve("blip2", {"coco"}) == texts_to_retrieve("blip2", {"msrvtt"}) == (50, 35)
    assert texts_to_retrieve("blip", ()) == texts_to_retrieve("blip2", {"nocaps"}) == (None, LONGEST_TEXT)
    adapter = adapt(captioner())
    published = measuring_config(adapter, "retrieval", as_sources(["coco:val"]), None, None, {})
    assert (published.max_words, published.max_length) == (30, 35)
    assert measuring_config(adapter, "retrieval", as_sources(["photos/"]), None, None, {}).max_words is None
    assert measuring_config(adapter, "answering", as_sources(["coco:val"]), None, None, {}).max_length == 35


def test_a_bound_that_is_given_moves_the_other() -> None:
    adapter = adapt(captioner())
    assert decoding_of(adapter, "captioning", (), None, max_new_tokens=2)[1].min_new_tokens == 2
    assert decoding_of(adapter, "captioning", (), None, min_new_tokens=25)[1].max_new_tokens == 25
    with pytest.raises(UserError, match="min_new_tokens 3 is more than max_new_tokens 2"):
        decoding_of(adapter, "captioning", (), None, min_new_tokens=3, max_new_tokens=2)


def test_the_command_stores_and_tells_how_it_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = miniature.coco(tmp_path).parent
    monkeypatch.setenv("OPENBLIP_DATA", str(root))
    save_model(tmp_path / "blip", captioner())
    command = ["evaluate", "coco:val", "--model", str(tmp_path / "blip"), "--device", "cpu"]
    given = ["--prompt", "a picture of ", "--beams", "2", "--max-new-tokens", "6", "--repetition-penalty", "1.3"]
    assert main([*command, *given, "--length-penalty", "0.5", "--out", str(tmp_path / "own")]) == 0
    settings = kept_result(tmp_path / "own")["settings"]
    assert (settings["prompt"], settings["rerank_k"], settings["dtype"]) == ("a picture of ", 256, "float32")
    assert (settings["max_words"], settings["max_length"]) == (30, 35)
    decode = settings["decode"]
    assert (decode["num_beams"], decode["max_new_tokens"]) == (2, 6)
    assert (decode["repetition_penalty"], decode["length_penalty"]) == (1.3, 0.5)
    said = capsys.readouterr().err
    assert (
        "captions of 1 to 6 tokens by beam search with 2 beams, repetition penalty 1.3, length penalty 0.5, prompt"
        in said
    )
    # In bfloat16 the same measures, stored as another evaluation.
    assert main([*command, "--dtype", "bfloat16", "--out", str(tmp_path / "half")]) == 0
    half = kept_result(tmp_path / "half")
    assert half["settings"]["dtype"] == "bfloat16"
    assert half["metrics"].keys() == kept_result(tmp_path / "own")["metrics"].keys()
    texts = "texts of up to 30 words and 35 tokens, ITM reads up to 256 candidates"
    assert f"captions of 4 to 19 tokens by beam search with 3 beams, {texts}, bfloat16" in capsys.readouterr().err


def test_a_prompt_that_no_model_of_questions_takes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "vqa", StoredModel(small.vqa_model(), small.vqa_tokenizer(), {"task": "answering"}))
    small.make_image(0).save(tmp_path / "0.png")
    row = {"image": "0.png", "question": "what is it?", "answer": "red"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    words = ["evaluate", str(tmp_path / "questions.jsonl"), "--model", str(tmp_path / "vqa"), "--device", "cpu"]
    assert main([*words, "--prompt", "Question: {} Answer:"]) == 2
    assert "--prompt tells BLIP-2's language model a question" in capsys.readouterr().err


def test_lemmas_without_spacy_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    save_model(tmp_path / "vqa", StoredModel(small.vqa_model(), small.vqa_tokenizer(), {"task": "answering"}))
    (tmp_path / "vqa" / "model.safetensors").unlink()
    (tmp_path / "questions.jsonl").write_text(json.dumps({"image": "0.png", "question": "what?", "answer": "red"}))
    words = ["evaluate", str(tmp_path / "questions.jsonl"), "--model", str(tmp_path / "vqa"), "--lemmas"]
    assert main(words) == 2
    assert "openblip[lemmas]" in capsys.readouterr().err


def test_questions_are_asked_as_in_the_papers() -> None:
    """Zero-shot, every configuration of LAVIS has its `blip_question`; who was trained on questions reads these."""
    question = "What color is the Bus (on the left)?"
    blip2 = _Blip2(encodes=True)
    assert Blip2Adapter(blip2, None).measured_question(question) == "what color is the bus on the left?"
    assert Blip2Adapter(blip2, None, {"task": "answering"}).measured_question(question) == question
    assert Blip2Adapter(blip2, None, {"clean": "none"}).measured_question(question) == question
    assert Blip2Adapter(blip2, None, {"clean": "spaces"}).measured_question(f" {question} ") == question
    vqa = adapt(StoredModel(small.vqa_model(), small.vqa_tokenizer()))
    assert vqa.need("answer").measured_question(question) == question, "its `ask` cleans"
