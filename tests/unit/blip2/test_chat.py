"""Questions in the chat template of an instruction-tuned language model, and what is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_blip2 import images, model, tokenizer, write_language
from transformers import AutoTokenizer

from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import IMAGE_MARK, LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.models.configs import LanguageConfig
from openblip.models.language import make_language
from openblip.recipes.blip2 import blip2_caption, blip2_vqa
from openblip.tasks.captioning import prepare_captions
from openblip.tasks.config import QUESTION_PROMPTS
from openblip.tasks.families.blip2 import CHAT_QUESTION, Blip2Adapter
from openblip.tasks.families.blip2_build import _with_chat

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION = "what is a dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_language(tmp_path_factory.mktemp("chat"), "llama")
    hf = AutoTokenizer.from_pretrained(made)
    hf.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    hf.chat_template = TEMPLATE
    hf.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("plain"), "llama")


def adapter(language: Path, chat: Any = "auto", **info: str) -> Blip2Adapter:
    made = model(language=language)
    assert made.language is not None
    made.language.config = replace(made.language.config, chat=chat)
    return Blip2Adapter(made, tokenizer(), info, language_tokenizer=LanguageTokenizer.load(language))


def test_the_image_stands_in_the_users_turn(folder: Path) -> None:
    words = LanguageTokenizer.load(folder)
    prompt = words.chat(QUESTION)
    assert prompt == f"<s><|user|>{IMAGE_MARK}{QUESTION}<|end|><|assistant|>"
    read = words.prompts([prompt, words.chat("the")], side="left")
    assert read.before == 2
    named = words.hf.convert_ids_to_tokens
    whole = ["<s>", "<|user|>", "what", "is", "a", "dog", "<|end|>", "<|assistant|>"]
    assert named(read.input_ids[0].tolist()) == whole
    assert named(read.input_ids[1].tolist())[-5:] == ["<s>", "<|user|>", "the", "<|end|>", "<|assistant|>"]
    text = words.texts(["a red bus"], prompts=[prompt])
    assert named(text.input_ids[0].tolist()) == [*whole, "a", "red", "bus", "<|end|>"]
    assert text.scored[0].tolist() == [False] * 8 + [True] * 4
    assert text.to("cpu").before == 2
    assert words.texts(["a red bus"], prompts=[prompt], max_length=2).scored.sum() == 2, "the template has room"
    assert words.prompts([QUESTION], side="left").before is None


@torch.no_grad()
def test_it_is_read_as_transformers_reads_it(folder: Path) -> None:
    language, words = make_language(LanguageConfig(source=str(folder))), LanguageTokenizer.load(folder)
    soft = torch.randn(2, 4, language.width, generator=torch.Generator().manual_seed(1))
    prompts = [words.chat(QUESTION), words.chat("the")]
    text = words.texts(["two dogs", "a cat"], prompts=prompts)
    ids, real = text.input_ids, text.attention_mask
    logits = language.decoder_logits(soft, ids, real, before=text.before)
    for row in range(2):
        length = int(real[row].sum())
        parts = language.embed(ids[row, :length])
        expected = language.hf(inputs_embeds=torch.cat((parts[:2], soft[row], parts[2:]))[None]).logits[0]
        # float32 sums in another order
        torch.testing.assert_close(logits[row, 2 : length + 1], expected[5:], rtol=1e-4, atol=1e-4)


def asked(found: Blip2Adapter, **how: Any) -> str:
    memory = found.remember(found.model.encode_image(images(1)))
    return found.ask(memory, [QUESTION], **how).prompts[0]


def test_who_is_asked_in_a_chat(folder: Path, plain: Path) -> None:
    question = CHAT_QUESTION.replace("{}", QUESTION)
    assert asked(adapter(folder)) == f"<s><|user|>{IMAGE_MARK}{question}<|end|><|assistant|>"
    own = QUESTION_PROMPTS[False].replace("{}", QUESTION)
    assert asked(adapter(folder, "no")) == own
    assert asked(adapter(plain)) == own
    assert asked(adapter(folder), prompt="{} answer") == f"{QUESTION} answer", "a prompt that is given stands alone"
    assert asked(adapter(folder, prompt="is {} of")) == f"is {QUESTION} of", "and so does one that was trained"
    assert IMAGE_MARK in asked(adapter(folder, "yes", prompt="is {} of"))
    with pytest.raises(UserError, match="no chat template"):
        asked(adapter(plain, "yes"))


def test_it_answers_captions_and_scores(folder: Path) -> None:
    found = adapter(folder, "yes", prompt="a photo of")
    memory = found.remember(found.model.encode_image(images(2)))
    config = DecodeConfig(num_beams=2, max_new_tokens=4)
    assert len(found.generate(memory, config, ["", ""])) == 2
    sums, counts = found.score_own(memory, ["a red bus", "two dogs"])
    assert counts.tolist() == [4, 3]
    both, _ = found.score_all(memory, ["a red bus", "two dogs"])
    torch.testing.assert_close(both.diagonal(), sums, rtol=1e-4, atol=1e-4)  # other padding
    without, _ = replace_chat(found, "auto").score_own(memory, ["a red bus", "two dogs"])
    assert not torch.allclose(without, sums, atol=1e-2), "captions stand in a chat where that is requested"
    answers = found.answers(found.ask(memory, [QUESTION, QUESTION]), config)
    assert all("<|" not in answer.text for row in answers for answer in row)


def test_the_images_mark_in_a_text_is_no_image(folder: Path, plain: Path) -> None:
    marked, config = f"what {IMAGE_MARK}is a dog", DecodeConfig(num_beams=1, max_new_tokens=3)
    for language, marks in ((folder, 1), (plain, 0)):
        found = adapter(language)
        memory = found.remember(found.model.encode_image(images(1)))
        questions = found.ask(memory, [QUESTION, marked])
        assert questions.prompts[0] == questions.prompts[1]
        assert questions.prompts[1].count(IMAGE_MARK) == marks
        first, second = found.answers(questions, config)
        assert first == second
        captions = (found.generate(memory, config, [prompt]) for prompt in (f"a {IMAGE_MARK}photo", "a photo"))
        assert next(captions) == next(captions)


def test_a_prompt_that_leaves_no_room_for_captions_is_refused(folder: Path) -> None:
    words = LanguageTokenizer.load(folder)
    with pytest.raises(UserError, match="fills the 4 tokens of max_length"):
        prepare_captions(words, start_id=None, max_length=4, prompt="a photo of")
    prepare_captions(words, start_id=None, max_length=5, prompt="a photo of")
    prepare_captions(words, start_id=None, max_length=4, prompt="a photo of", chat=True)


def replace_chat(found: Blip2Adapter, chat: Any) -> Blip2Adapter:
    found.model.llm.config = replace(found.model.llm.config, chat=chat)
    return found


def test_a_run_settles_it(folder: Path, plain: Path) -> None:
    questions, captions = blip2_vqa(("q.jsonl",), model="m"), blip2_caption(("c.jsonl",), model="m")
    config = LanguageConfig()
    with_template, without = LanguageTokenizer.load(folder), LanguageTokenizer.load(plain)
    assert _with_chat(config, with_template, questions).chat == "yes"
    assert _with_chat(config, without, questions).chat == "no"
    assert _with_chat(config, with_template, captions).chat == "auto"
    requested = override(captions, ["language.chat=yes"])
    assert _with_chat(config, with_template, requested).chat == "yes"
    with pytest.raises(UserError, match="no chat template"):
        _with_chat(config, without, requested)
