"""InstructBLIP: the Q-Former reads the whole prompt. Parity with transformers' class, LAVIS' files, training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_blip2 import PIXELS, Kind, images, make_image, model, spread, tokenizer, write_bert_words, write_language
from test_store import stored
from torch import Tensor

import openblip
from openblip.checkpoints.blip2 import lavis_state
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.outline import outline
from openblip.checkpoints.store import open_model, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.models.blip2 import Blip2
from openblip.tasks.families.blip2 import Blip2Adapter
from openblip.tasks.predictor import Predictor
from openblip.tasks.registry import adapt

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the reference's code sums float32 in another order"""
KINDS: tuple[Kind, ...] = ("llama", "t5", "opt")
PROMPTS = ["a photo of", "what is a dog on a road", "the"]
IMAGES = [make_image(i) for i in range(3)]
NEW = 7


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_language(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def write_theirs(folder: Path, llm: Path) -> Any:
    """A folder that transformers' own class wrote, with its processor and two tokenizers."""
    words = transformers.AutoTokenizer.from_pretrained(llm)
    images_of = transformers.BlipImageProcessor(size={"height": PIXELS, "width": PIXELS})
    tokenizer().save(folder / "qformer_tokenizer")
    reader = transformers.AutoTokenizer.from_pretrained(folder / "qformer_tokenizer")
    processor = transformers.InstructBlipProcessor(images_of, words, reader, num_query_tokens=4)
    processor.save_pretrained(folder)
    config = transformers.InstructBlipConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": PIXELS, "patch_size": 8,
        },
        qformer_config={
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
            "vocab_size": tokenizer().vocab_size, "max_position_embeddings": 32,
        },
        text_config=transformers.AutoConfig.from_pretrained(llm).to_dict(),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    torch.manual_seed(2)
    theirs = transformers.InstructBlipForConditionalGeneration(config)
    spread(theirs, 0.25)
    theirs.eval().save_pretrained(folder)
    return theirs


@torch.no_grad()
def their_texts(theirs: Any, folder: Path, prompts: list[str], beams: int) -> list[str]:
    """What transformers writes for each image and prompt by itself, with its own processor."""
    processor = transformers.InstructBlipProcessor.from_pretrained(folder)
    written = []
    for image, prompt in zip(IMAGES, prompts, strict=True):
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        words = LanguageTokenizer(processor.tokenizer)
        ids: Tensor = theirs.generate(
            **inputs, num_beams=beams, max_new_tokens=NEW, do_sample=False, pad_token_id=words.pad_id,
            eos_token_id=words.stop_ids, suppress_tokens=None,
        )  # fmt: skip
        decoder = not theirs.language_model.config.is_encoder_decoder
        # A decoder that is given ids and embeddings gives the ids back too.
        begin = inputs["input_ids"].shape[1] if decoder and ids.shape[1] > NEW else int(not decoder)
        written.append(words.decode(ids[0, begin:]))
    return written


def our_texts(predictor: Predictor, prompts: list[str], beams: int) -> list[str]:
    config = DecodeConfig(num_beams=beams, max_new_tokens=NEW, beam_scoring="transformers")
    return [own[0].text for own in predictor.caption(IMAGES, config, prompt=prompts)]


def load(folder: Path) -> Predictor:
    return openblip.load(folder, device="cpu", dtype="float32", batch_size=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_theirs_writes_the_same(tmp_path: Path, llms: dict[str, Path], kind: str) -> None:
    theirs = write_theirs(tmp_path / "theirs", llms[kind])
    found = open_model(tmp_path / "theirs")
    assert found.reads_prompts
    read, pixels = tokenizer().encode(PROMPTS), images()
    with torch.no_grad():
        made: Blip2 = found.model
        memory = made.remember(made.encode_image(pixels))
        soft = made.soft_prompt(memory, read.input_ids, read.attention_mask)
        ids = {"qformer_input_ids": read.input_ids, "qformer_attention_mask": read.attention_mask.long()}
        torch.testing.assert_close(soft, theirs.get_image_features(pixels, **ids).pooler_output, **CLOSE)
        assert not torch.allclose(soft[:1], made.soft_prompt(memory)[:1], atol=1e-2)  # the prompt is read
    ours, seen = load(tmp_path / "theirs"), set()
    for beams in (1, 3):
        texts = our_texts(ours, PROMPTS, beams)
        assert texts == their_texts(theirs, tmp_path / "theirs", PROMPTS, beams)
        seen |= set(texts)
    assert len(seen) > 2, "the models ignore their input"
    # and ours of it goes back, from a folder that needs nothing else
    again = open_model(convert_model(found, tmp_path / "ours", to="openblip"))
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), again.model.parameters(), strict=True))
    assert again.reads_prompts


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_runs_there(tmp_path: Path, llms: dict[str, Path], kind: str) -> None:
    made = model(language=llms[kind], matches=False, vision_norm_eps=1e-6, qformer={"writes": False})
    ours = replace(stored(made, llms[kind]), tokenizer=tokenizer(), info={"reads_prompts": True})
    folder = convert_model(ours, tmp_path / "out", to="transformers")
    theirs = transformers.InstructBlipForConditionalGeneration.from_pretrained(folder)
    predictor = Predictor(Blip2Adapter(made, tokenizer(), ours.info, language_tokenizer=ours.language_tokenizer))
    assert our_texts(predictor, PROMPTS, 3) == their_texts(theirs, folder, PROMPTS, 3)
    back = open_model(folder)
    assert back.reads_prompts
    state = back.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())


def test_a_prompt_is_read_where_it_is_asked_scored_and_answered(tmp_path: Path, llms: dict[str, Path]) -> None:
    write_theirs(tmp_path / "theirs", llms["llama"])
    predictor = load(tmp_path / "theirs")
    adapter = predictor.adapter
    assert isinstance(adapter, Blip2Adapter)
    assert (adapter.prompt, adapter.question_prompt) == ("A short image caption.", "Question: {} Short answer:")
    assert adapter.answering.length_penalty == -1.0
    assert not adapter.reads_questions
    config = DecodeConfig(num_beams=2, max_new_tokens=6)
    for prompt in ("a photo of", "what is"):
        for image, (caption,) in zip(IMAGES, predictor.caption(IMAGES, config, prompt=prompt), strict=True):
            if caption.complete and caption.text:
                (likelihood,) = predictor.log_likelihood(image, [caption.text], prompt=prompt)[0]
                if likelihood.num_tokens == caption.num_tokens:  # no unknown word, which is written as nothing
                    assert likelihood.log_prob == pytest.approx(caption.log_prob, abs=1e-3)
    # A question is asked as a prompt is: by the words around it too.
    wording = "question what is {} answer"
    ((answered,),) = predictor.answer(IMAGES[0], ["a dog"], config=config, prompt=wording)
    (caption,) = predictor.caption(IMAGES[0], config, prompt=wording.replace("{}", "a dog"))[0]
    assert answered.answers[0].text == caption.text
    with pytest.raises(UserError, match="tokens"):
        predictor.caption(IMAGES[0], config, prompt="a dog on " * 20)


@torch.no_grad()
def test_frames_of_a_video_are_read_one_by_one(tmp_path: Path, llms: dict[str, Path]) -> None:
    theirs = write_theirs(tmp_path / "theirs", llms["opt"])
    adapter = load(tmp_path / "theirs").adapter
    assert isinstance(adapter, Blip2Adapter)
    videos = torch.stack([images(3, seed=4), images(3, seed=5)])  # [B, K, 3, H, W]
    prompts = [["a dog", "what is on the road"], ["two birds", "the"]]  # two for each video
    read = tokenizer().encode([prompt for own in prompts for prompt in own])
    memory = adapter.remember(adapter.model.encode_image(videos))
    soft = adapter._soft(memory, 4, read)
    assert soft.shape == (4, 3 * 4, 32)
    for row in range(4):
        ids = {"qformer_input_ids": read.input_ids[row : row + 1]}
        ids["qformer_attention_mask"] = read.attention_mask[row : row + 1].long()
        expected = [theirs.get_image_features(frame[None], **ids).pooler_output for frame in videos[row // 2]]
        torch.testing.assert_close(soft[row : row + 1], torch.cat(expected, dim=1), **CLOSE)
    # An image is a video of one frame, and what is trained on reads it as what is asked.
    (one,) = adapter._soft(
        adapter.remember(adapter.model.encode_image(videos[:1, :1])), 1, tokenizer().encode(["the"])
    )
    (image,) = adapter._soft(
        adapter.remember(adapter.model.encode_image(videos[:1, 0])), 1, tokenizer().encode(["the"])
    )
    torch.testing.assert_close(one, image, **CLOSE)


def test_the_commands(tmp_path: Path, llms: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    write_theirs(tmp_path / "theirs", llms["t5"])
    IMAGES[0].save(tmp_path / "0.png")
    image, how = str(tmp_path / "0.png"), ["--model", str(tmp_path / "theirs"), "--device", "cpu"]
    predictor = load(tmp_path / "theirs")
    capfd.readouterr()
    assert main(["caption", image, *how, "--dtype", "float32", "--prompt", "what is", "--max-new-tokens", "6"]) == 0
    config = replace(Blip2Adapter.captioning, max_new_tokens=6)
    told = json.loads(capfd.readouterr().out)["captions"]
    assert told[0]["text"] == predictor.caption(image, config, prompt="what is")[0][0].text
    assert main(["ask", image, *how, "--dtype", "float32", "--question", "a dog", "--prompt", "what is {}"]) == 0
    (told,) = json.loads(capfd.readouterr().out)["questions"]
    config = replace(predictor.adapter.answering, min_new_tokens=1)
    ((answered,),) = predictor.answer(image, ["a dog"], config=config, prompt="what is {}")
    assert told["answers"][0]["text"] == answered.answers[0].text
    # Of its sizes alone, for what is predicted, the same is known.
    adapter = adapt(outline(tmp_path / "theirs"))
    assert isinstance(adapter, Blip2Adapter)
    assert adapter.reads_prompts


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_files_of_lavis(tmp_path: Path, llms: dict[str, Path], kind: str) -> None:
    """A text side before a language model, and no word of ours: that is InstructBLIP's."""
    made = model(language=llms[kind], matches=False, qformer={"writes": False})
    state = lavis_state(made)
    if kind == "llama":
        state = {key.replace("opt_proj", "llm_proj"): value for key, value in state.items()}
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(32)[None]
    torch.save({"model": state}, tmp_path / "instruct_blip.pth")
    options: dict[str, Any] = {"language": str(llms[kind]), "heads": (2, 4), "tokenizer": tokenizer()}
    found = open_model(tmp_path / "instruct_blip.pth", **options)
    assert found.reads_prompts
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), made.parameters(), strict=True))
    # What we write tells which of both it is.
    for info in ({"reads_prompts": True}, {"task": "answering"}):
        ours = replace(stored(made, llms[kind]), tokenizer=tokenizer(), info=info)
        file = convert_model(ours, tmp_path / f"{len(info)}{next(iter(info))}.pth", to="blip")
        projection = {"llama": "llm_proj" if "reads_prompts" in info else "opt_proj", "t5": "t5_proj"}[kind]
        assert f"{projection}.weight" in torch.load(file, weights_only=True)["model"]
        back = open_model(file, language=str(llms[kind]), tokenizer=tokenizer())
        assert back.info.get("reads_prompts") == info.get("reads_prompts")
        assert back.info.get("task") == info.get("task")


def test_texts_begin_with_another_token(llms: dict[str, Path]) -> None:
    plain, other = LanguageTokenizer.load(llms["llama"]), LanguageTokenizer.load(llms["llama"], begin="</s>")
    for begun in (plain, other):
        first = begun.prompts(["a dog", "the"], side="right").input_ids[:, 0].tolist()
        texts = begun.texts(["dogs"], prompts=["a dog"])
        assert first == [begun.hf.bos_token_id if begun is plain else begun.eos_id] * 2
        assert texts.input_ids[0, 0] == first[0]
        assert texts.scored[0].tolist() == [False, False, False, True, True]
    assert torch.equal(
        plain.prompts(["a dog"], side="left").input_ids[:, 1:],
        other.prompts(["a dog"], side="left").input_ids[:, 1:],
    )
    with pytest.raises(UserError, match=r'no token "<begin>" to begin texts with: language\.begin'):
        LanguageTokenizer.load(llms["llama"], begin="<begin>")
    with pytest.raises(UserError, match=r"do not begin with \[BOS\].* leave language.begin out"):
        LanguageTokenizer.load(llms["t5"], begin="</s>")


@pytest.fixture
def read_by_queries(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """The texts that a Q-Former reads before a language model."""
    read: set[tuple[int, ...]] = set()
    original = Blip2.soft_prompt

    def soft_prompt(self: Blip2, memory: Any, input_ids: Any = None, *more: Any, **how: Any) -> Tensor:
        read.update([()] if input_ids is None else map(tuple, input_ids.tolist()))
        return original(self, memory, input_ids, *more, **how)

    monkeypatch.setattr(Blip2, "soft_prompt", soft_prompt)
    return read


def ids_of(prompt: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode([prompt]).input_ids[0].tolist())


def test_stage_1_is_trained_into_one(
    tmp_path: Path,
    llms: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
    read_by_queries: set[tuple[int, ...]],
) -> None:
    save_model(tmp_path / "stage1", stored(model()))
    make_image(0).save(tmp_path / "0.png")
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "0.png", "caption": "two birds"}))
    data, start = (
        str(tmp_path / "data.jsonl"),
        ["--model", str(tmp_path / "stage1"), "--language", str(llms["llama"])],
    )
    command = ["train", "blip2-stage2", data, *start, "--steps", "2", "--out", str(tmp_path / "run")]
    for setting in (
        "batch_size=1",
        "num_workers=0",
        "reads_prompts=true",
        "prompt=what is",
        "train.warmup_steps=1",
    ):
        command += ["--set", setting]
    assert main(command) == 0, capfd.readouterr().err
    assert read_by_queries == {ids_of("what is")}
    made = load(tmp_path / "run" / "model")
    assert isinstance(made.adapter, Blip2Adapter)
    assert made.adapter.reads_prompts
    assert made.adapter.prompt == "what is"
    # What cannot read prompts says so, before anything is trained.
    refused = [*command[:-2], "--set", "fit_soft_prompts=true", "--out", str(tmp_path / "other")]
    assert main(refused) == 2
    assert "fit_soft_prompts fits what the queries read without a prompt" in capfd.readouterr().err
    assert main([*command[:-2], "--set", "prompt= ", "--out", str(tmp_path / "other")]) == 2
    assert "reads_prompts needs a prompt to read" in capfd.readouterr().err
    stage1 = [
        "train",
        "blip2-stage1",
        data,
        "--dry-run",
        "--set",
        "reads_prompts=true",
        "--out",
        str(tmp_path / "no"),
    ]
    assert main(stage1) == 2
    assert "reads_prompts is for captions and questions" in capfd.readouterr().err
    plain = model(language=llms["llama"], matches=False, qformer={"vocab_size": None})
    save_model(tmp_path / "plain", stored(plain, llms["llama"]))
    again = ["train", "blip2-caption", data, "--model", str(tmp_path / "plain"), "--set", "reads_prompts=true"]
    assert main([*again, "--out", str(tmp_path / "third"), "--image-size", str(PIXELS)]) == 2
    assert "reads no text, so no prompt" in capfd.readouterr().err


@pytest.mark.parametrize("recipe", ["blip2-vqa", "blip2-caption"])
def test_it_is_trained_on_as_it_is_asked(
    recipe: str,
    tmp_path: Path,
    llms: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
    read_by_queries: set[tuple[int, ...]],
) -> None:
    """The queries read the whole prompt in training as in use, whatever the longest question is."""
    write_theirs(tmp_path / "theirs", llms["llama"])
    for number in range(3):
        make_image(number).save(tmp_path / f"{number}.png")
    rows = [
        {"image": f"{i}.png", "question": "what is a dog", "answer": "two birds"}
        if recipe == "blip2-vqa"
        else {"image": f"{i}.png", "caption": "two birds"}
        for i in range(3)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompt = "question : {} answer :" if recipe == "blip2-vqa" else "what is"
    settings = ("train.learning_rate=1e-2", "train.warmup_steps=1", "batch_size=3", "num_workers=0")
    command = ["train", recipe, str(tmp_path / "data.jsonl"), "--model", str(tmp_path / "theirs")]
    command += ["--out", str(tmp_path / "run"), "--steps", "80", "--image-size", str(PIXELS)]
    for setting in (*settings, "save_whole=true", f"prompt={prompt}", "max_length=6"):
        command += ["--set", setting]
    assert main(command) == 0, capfd.readouterr().err
    wanted = {ids_of(prompt.replace("{}", "what is a dog"))}
    assert read_by_queries == wanted
    trained = load(tmp_path / "run" / "model")
    assert isinstance(trained.adapter, Blip2Adapter)
    assert trained.adapter.reads_prompts
    if recipe == "blip2-vqa":
        ((answered,),) = trained.answer(IMAGES[0], ["what is a dog"])
        assert answered.answers[0].text == "two birds"
    else:
        assert trained.caption(IMAGES[0])[0][0].text == "two birds"
    assert read_by_queries == wanted
    capfd.readouterr()


def test_folders_of_the_hub(tmp_path: Path, llms: dict[str, Path]) -> None:
    """Their configuration names a wrong end token, their Q-Former has no row for [ENC]."""
    write_theirs(tmp_path / "theirs", llms["llama"])
    file = tmp_path / "theirs" / "config.json"
    described = json.loads(file.read_text())
    described["text_config"] |= {"eos_token_id": 1, "pad_token_id": -1}
    file.write_text(json.dumps(described))
    (weights,) = (tmp_path / "theirs").glob("*.safetensors")
    state = load_file(weights)
    reader = tmp_path / "theirs" / "qformer_tokenizer"
    shutil.rmtree(reader)
    words, rows = "qformer.embeddings.word_embeddings.weight", write_bert_words(reader) + 1  # and [DEC]
    state[words] = state[words][:rows].clone()
    save_file(state, weights, metadata={"format": "pt"})
    predictor = load(tmp_path / "theirs")
    assert predictor.adapter.language_tokenizer.end == ""
    assert predictor.adapter.language_tokenizer.eos_id == 2
    with pytest.raises(UserError, match=r"a text holds \[ENC\], a token"):
        predictor.caption(IMAGES[0], prompt="what is [ENC]")
    assert predictor.caption(IMAGES[0], prompt="what is [DEC]")


def test_another_begin_is_not_exported_to_transformers(tmp_path: Path, llms: dict[str, Path]) -> None:
    made = model(language=llms["llama"], matches=False, qformer={"writes": False})
    made.llm.config = replace(made.llm.config, begin="</s>")
    ours = replace(stored(made, llms["llama"]), tokenizer=tokenizer(), info={"reads_prompts": True})
    with pytest.raises(UserError, match=r'begin with "</s>" in place of \[BOS\] \(language\.begin\)'):
        convert_model(ours, tmp_path / "out", to="transformers")
