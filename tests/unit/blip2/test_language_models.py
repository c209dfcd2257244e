"""Frozen language models of three architectures: padding, steps, ids against transformers, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from small_blip2 import Kind, spread, tokenizer, write_language
from small_blip2 import model as blip2_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.generation.language import score_after
from openblip.models.configs import LanguageConfig
from openblip.models.language import FrozenLanguage, make_language
from openblip.models.language_stepper import CausalStepper, Seq2SeqStepper

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the same sums of float32 in another order"""
PROMPTS = ["a photo of", "question what is a dog answer", "the"]
DECODERS = ("opt", "llama")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_language(tmp_path_factory.mktemp(kind), kind) for kind in get_args(Kind)}


@pytest.fixture(scope="module")
def language(folders: dict[str, Path]) -> Any:
    made = {kind: make_language(LanguageConfig(source=str(path))) for kind, path in folders.items()}
    return lambda kind: (made[kind], LanguageTokenizer.load(folders[kind]))


def soft(model: FrozenLanguage, rows: int = 3, queries: int = 4) -> torch.Tensor:
    return 0.5 * torch.randn(rows, queries, model.width, generator=torch.Generator().manual_seed(1))


def dropouts(model: FrozenLanguage) -> list[tuple[str, float]]:
    named = [item for part in model.hf.modules() for item in vars(part).items()]
    return [(name, value) for name, value in named if isinstance(value, float) and (name == "p" or "drop" in name)]


def written(
    model: FrozenLanguage,
    language_tokenizer: LanguageTokenizer,
    prompts: list[str],
    images: torch.Tensor,
    **how: Any,
) -> Any:
    side: Any = how.pop("side", "left")
    config = DecodeConfig(**{"max_new_tokens": 8, **how})
    if model.is_encoder_decoder:
        read = language_tokenizer.prompts(prompts, side="right", end=True)
        stepper: Any = Seq2SeqStepper(model, *model.encode(images, read.input_ids, read.attention_mask))
        ids, mask = torch.full((len(prompts), 1), model.start_id), None
    else:
        read = language_tokenizer.prompts(prompts, side=side)
        stepper, ids, mask = CausalStepper(model, images), read.input_ids, read.attention_mask
    return decode(stepper, ids, mask, config, eos_ids=language_tokenizer.stop_ids, pad_id=language_tokenizer.pad_id)


@torch.no_grad()
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_does_not_see_padding(language: Any, kind: str) -> None:
    model, words = language(kind)
    images = soft(model)
    whole = words.texts(["a red bus", "two dogs", "the road"], prompts=PROMPTS)
    logits = model.decoder_logits(images, whole.input_ids, whole.attention_mask)
    for row in range(3):
        length = int(whole.attention_mask[row].sum())
        alone = model.decoder_logits(images[row : row + 1], whole.input_ids[row : row + 1, :length],
                                     whole.attention_mask[row : row + 1, :length])  # fmt: skip
        torch.testing.assert_close(logits[row : row + 1, : length + 1], alone, **CLOSE)


def other_decoders() -> dict[str, Any]:
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**sizes, "intermediate_size": 64, "num_key_value_heads": 2}
    t = transformers
    return {
        "Qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**grouped, tie_word_embeddings=True)),
        "Qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**grouped, head_dim=8)),
        "Mistral with a window": lambda: t.MistralForCausalLM(t.MistralConfig(**grouped, sliding_window=5)),
        "Gemma 2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**grouped, head_dim=8, sliding_window=5)),
        "GPT-2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4)),
        "Bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4)),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", other_decoders())
def test_other_decoders_compute_as_in_transformers(kind: str) -> None:
    """Windows, places by rotation, by table or by distance: the mask that is given leaves all as it is."""
    torch.manual_seed(0)
    hf = other_decoders()[kind]()
    spread(hf, 0.3)
    model = FrozenLanguage(hf, LanguageConfig(source=kind))
    images = soft(model)
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(7) < torch.tensor([7, 4, 2])[:, None]
    logits = model.decoder_logits(images, ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        embeds = torch.cat((images[row], model.embed(ids[row, :length])))[None]
        expected = hf(inputs_embeds=embeds).logits[0, -length - 1 :]
        torch.testing.assert_close(logits[row, : length + 1], expected, **CLOSE)


def recurrent_decoders() -> dict[str, Any]:
    """Those whose layers keep a state beside, or in place of, keys and values; and a window, whose keys go."""
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**sizes, "intermediate_size": 64, "num_key_value_heads": 2}
    linear: dict[str, Any] = {f"linear_{name}_head_dim": 8 for name in ("key", "value")}
    linear |= {f"linear_num_{name}_heads": 2 for name in ("key", "value")}
    linear |= {"layer_types": ["linear_attention", "full_attention"]}
    mamba: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
    granite = {
        **mamba,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
        "num_local_experts": 0,
    }
    kinds = ["conv", "full_attention"]
    t = transformers
    return {
        "Qwen 3.5": lambda: t.Qwen3_5ForCausalLM(t.Qwen3_5TextConfig(**grouped, **linear, head_dim=8)),
        "LFM2": lambda: t.Lfm2ForCausalLM(t.Lfm2Config(**grouped, layer_types=kinds, pad_token_id=0)),
        "Granite hybrid": lambda: t.GraniteMoeHybridForCausalLM(t.GraniteMoeHybridConfig(**grouped, **granite)),
        "Falcon H1": lambda: t.FalconH1ForCausalLM(
            t.FalconH1Config(**grouped, **mamba, head_dim=8, mamba_d_ssm=64, mamba_n_groups=1)
        ),
        "Mistral with a window": lambda: t.MistralForCausalLM(t.MistralConfig(**grouped, sliding_window=5)),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", recurrent_decoders())
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"sample": True, "num_sequences": 2}], ids=str)
def test_states_go_with_their_rows(kind: str, how: dict[str, Any]) -> None:
    """Steps over padded prompts, with beams that change places and rows that end, give what one pass gives."""
    torch.manual_seed(1)
    hf = recurrent_decoders()[kind]()
    for parameter in hf.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)  # rows differ, and some texts end early
    model = FrozenLanguage(hf, LanguageConfig(source=kind))
    images, lengths = soft(model, rows=5), torch.tensor([1, 4, 2, 6, 3])
    prompts = torch.randint(3, 40, (5, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(6) < lengths[:, None]
    config = DecodeConfig(max_new_tokens=8, **how)
    decoded = decode(CausalStepper(model, images), prompts, mask, config, eos_ids=[2, 5, 7], pad_id=0)
    ids = decoded.with_prompts(prompts, mask)
    begun = lengths[decoded.rows]
    real = torch.arange(ids.shape[1]) < (begun + decoded.lengths)[:, None]
    scores = model.decoder_logits(images[decoded.rows], ids, real)[:, :-1].log_softmax(-1)
    picked = scores.gather(-1, ids[..., None])[..., 0]
    for row, (first, count) in enumerate(zip(begun.tolist(), decoded.lengths.tolist(), strict=True)):
        torch.testing.assert_close(
            picked[row, first : first + count], decoded.token_log_probs[row, :count], **CLOSE
        )


def test_decoders_whose_states_cannot_be_reordered_are_refused() -> None:
    """They would train, and then write wrongly or not at all."""
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3}
    heads: dict[str, Any] = {**sizes, "num_attention_heads": 4, "intermediate_size": 64}
    gpt: dict[str, Any] = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    t = transformers
    for make in (
        lambda: t.MambaForCausalLM(t.MambaConfig(**sizes, state_size=8)),
        lambda: t.RecurrentGemmaForCausalLM(t.RecurrentGemmaConfig(**heads, lru_width=32)),
        lambda: t.MiniMaxForCausalLM(t.MiniMaxConfig(**heads, num_key_value_heads=2, head_dim=8)),
        lambda: t.RwkvForCausalLM(t.RwkvConfig(**sizes, attention_hidden_size=32)),
        lambda: t.OpenAIGPTLMHeadModel(t.OpenAIGPTConfig(**gpt)),
    ):
        hf: Any = make()  # type: ignore[no-untyped-call, unused-ignore]
        with pytest.raises(UserError, match=r"^some-model \([\w-]+\) keeps what it has read in a way of its own"):
            FrozenLanguage(hf, LanguageConfig(source="some-model"))


def scaled_heads() -> dict[str, Any]:
    """Models that compute more than a product at their head."""
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    grouped = {**sizes, "intermediate_size": 64, "num_key_value_heads": 2}
    t = transformers
    t5: dict[str, Any] = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    bart = {"vocab_size": 40, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
    opt: dict[str, Any] = {"ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 64}
    return {
        "Gemma 2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**grouped, head_dim=8, final_logit_softcapping=2.0)),
        "Cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**grouped, logit_scale=0.3)),
        "Granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**grouped, logits_scaling=3.0)),
        "OPT": lambda: t.OPTForCausalLM(t.OPTConfig(**sizes, **opt)),
        "T5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(**t5, decoder_start_token_id=0, tie_word_embeddings=True)
        ),
        "Bart": lambda: t.BartForConditionalGeneration(
            t.BartConfig(**bart, decoder_attention_heads=4, max_position_embeddings=64, decoder_start_token_id=2)
        ),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", scaled_heads())
def test_the_head_reads_chosen_places_alone(kind: str) -> None:
    torch.manual_seed(0)
    hf = scaled_heads()[kind]()
    spread(hf, 0.3)
    if hasattr(hf, "final_logits_bias"):
        hf.final_logits_bias.normal_()
    model = FrozenLanguage(hf, LanguageConfig(source=kind))
    images, places = soft(model), torch.tensor([1, 2, 6, 9, 14, 20])
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids, dtype=torch.bool)
    rows: list[int] = []
    model.hf.get_output_embeddings().register_forward_hook(lambda _, inputs, out: rows.append(out[..., 0].numel()))
    if model.is_encoder_decoder:
        states = model.encode(images, ids, mask)
        chosen, whole = model.target_logits(*states, ids, places), model.target_logits(*states, ids)
    else:
        chosen = model.decoder_logits(images, ids, mask, places)
        whole = model.decoder_logits(images, ids, mask)[:, :-1]
    torch.testing.assert_close(chosen, whole.flatten(0, 1)[places], **CLOSE)
    assert rows[0] == len(places)
    assert not model.hf.get_output_embeddings()._forward_pre_hooks


@pytest.fixture(scope="module")
def t5gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T5Gemma, whose inner configurations do not say that there is an encoder, with a tokenizer that puts [BOS]."""
    folder = tmp_path_factory.mktemp("t5gemma")
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *["a", "red", "bus", "two", "dogs", "photo", "of", "the"]]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    ).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": 20, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.T5GemmaConfig(encoder=sizes, decoder=sizes, vocab_size=20)
    hf = transformers.T5GemmaForConditionalGeneration(config)
    spread(hf, 0.3)
    hf.tie_weights()
    hf.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_an_encoder_decoder_whose_parts_are_decoders(t5gemma: Path) -> None:
    """It starts with [BOS], and its texts are scored and written as transformers does."""
    model, words = make_language(LanguageConfig(source=str(t5gemma))), LanguageTokenizer.load(t5gemma)
    assert (model.is_encoder_decoder, model.start_id) == (True, 2)
    images, prompts = soft(model), ["a photo of", "the", "a"]
    read = words.prompts(prompts, side="right", end=True)
    states, seen = model.encode(images, read.input_ids, read.attention_mask)
    embeds = torch.cat((images, model.embed(read.input_ids)), dim=1)
    inputs = {"inputs_embeds": embeds, "attention_mask": seen.long()}
    text = words.texts(["a red bus", "two dogs", "dogs"]).targets(2)
    assert text.input_ids.tolist() == [[4, 5, 6, 1], [7, 8, 1, 0], [8, 1, 0, 0]]  # [BOS] stands once, as the start
    assert torch.equal(text.scored, text.attention_mask)
    starts = torch.full((3, 1), 2)
    logits = model.hf(**inputs, decoder_input_ids=torch.cat((starts, text.input_ids[:, :-1]), dim=1)).logits
    ours, real = model.target_logits(states, seen, text.input_ids), text.attention_mask
    torch.testing.assert_close(ours[real], logits[real], **CLOSE)
    each = logits.log_softmax(-1).gather(2, text.input_ids[..., None])[..., 0] * real
    sums, counts = score_after(model, words, images, [["a red bus"], ["two dogs"], ["dogs"]], prompts=prompts)
    torch.testing.assert_close(sums[:, 0], each.sum(1), **CLOSE)
    assert counts[:, 0].tolist() == [4, 3, 2]
    settings = DecodeConfig(num_beams=1, max_new_tokens=9, min_new_tokens=9)
    decoded = decode(Seq2SeqStepper(model, states, seen), starts, None, settings, eos_ids=1, pad_id=0)
    limits = {"max_new_tokens": 9, "min_new_tokens": 9, "eos_token_id": 1, "pad_token_id": 0}
    theirs = model.hf.generate(**inputs, **limits, decoder_start_token_id=2, do_sample=False)
    assert decoded.ids.tolist() == theirs[:, 1:].tolist()


def test_what_such_a_model_is_refused_for(tmp_path: Path, t5gemma: Path) -> None:
    first = make_language(LanguageConfig(source=str(t5gemma), bos="first"))
    with pytest.raises(UserError, match=r"reads \[BOS\] with the text"):
        first.settle_bos(True)
    words = tokenizer()
    whole = StoredModel(blip2_model(language=t5gemma), words, {}, [], LanguageTokenizer.load(t5gemma))
    with pytest.raises(UserError, match=r"no place for a language model whose two parts.*\(t5gemma\)"):
        convert_model(whole, tmp_path / "out", to="transformers", part="caption")


@pytest.mark.parametrize("kind", ["ProphetNet", "SwitchTransformers"])
def test_decoders_that_are_read_otherwise_are_refused(kind: str) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "ProphetNet": {
            "vocab_size": 40, "hidden_size": 32, "num_encoder_layers": 1, "num_decoder_layers": 1,
            "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64, "decoder_start_token_id": 0,
        },
        "SwitchTransformers": {
            "vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4,
            "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
            "decoder_start_token_id": 0,
        },
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes[kind])
    with pytest.raises(UserError, match=r"has a decoder that is read otherwise"):
        FrozenLanguage(getattr(transformers, f"{kind}ForConditionalGeneration")(config), LanguageConfig(source="x"))


@torch.no_grad()
def test_bos_stands_before_the_soft_prompts(folders: dict[str, Path]) -> None:
    """As transformers reads [BOS], soft prompts, text; with padding on either side, whole and in steps."""
    model = make_language(LanguageConfig(source=str(folders["llama"]), bos="first"))
    words, images = LanguageTokenizer.load(folders["llama"]), soft(model)
    prompts = ["a photo of", "", "the"]
    whole = words.texts(["a red bus", "two dogs", "road"], prompts=prompts)
    logits = model.decoder_logits(images, whole.input_ids, whole.attention_mask)
    sides: tuple[Any, ...] = ("left", "right")
    reads = [words.prompts(prompts, side=side) for side in sides]
    first = [CausalStepper(model, images).start(read.input_ids, read.attention_mask) for read in reads]
    for row in range(3):
        length = int(whole.attention_mask[row].sum())
        text = model.embed(whole.input_ids[row, :length])
        expected = model.hf(inputs_embeds=torch.cat((text[:1], images[row], text[1:]))[None]).logits[0]
        torch.testing.assert_close(logits[row, 1 : length + 1], expected[-length:], **CLOSE)
        begun = words.prompts([prompts[row]], side="right").input_ids.shape[1]
        for scores in first:
            torch.testing.assert_close(scores[row], logits[row, begun], **CLOSE)
    together = written(model, words, prompts, images, num_beams=3)
    alone = written(model, words, prompts[1:2], images[1:2], num_beams=3)
    length = int(alone.lengths[0])
    assert together.ids[1, :length].tolist() == alone.ids[0, :length].tolist()


@pytest.mark.parametrize(
    ("kind", "wanted", "begins", "settled"),
    [
        ("llama", "auto", True, "first"), ("llama", "auto", False, "none"), ("llama", "none", True, "none"),
        ("opt", "auto", True, "none"), ("opt", "first", True, "first"), ("t5", "auto", False, "none"),
    ],
)  # fmt: skip
def test_where_bos_stands_is_settled(
    folders: dict[str, Path], kind: str, wanted: Any, begins: bool, settled: str
) -> None:
    model = make_language(LanguageConfig(source=str(folders[kind]), bos=wanted))
    assert LanguageTokenizer.load(folders[kind]).puts_bos == (kind != "t5")
    model.settle_bos(begins)
    assert model.config.bos == settled
    if not begins:
        model.config = LanguageConfig(bos="first")
        with pytest.raises(UserError, match=r"do not begin with \[BOS\]"):
            model.settle_bos(begins)


@torch.no_grad()
@pytest.mark.parametrize("kind", DECODERS)
def test_steps_equal_the_whole(language: Any, kind: str) -> None:
    """Log-probabilities of what was written token by token are those of reading it at once."""
    model, words = language(kind)
    images = soft(model)
    decoded = written(model, words, PROMPTS, images)
    prompt = words.prompts(PROMPTS, side="right")
    ids = decoded.with_prompts(prompt.input_ids, prompt.attention_mask)
    real = torch.arange(ids.shape[1]) < (prompt.attention_mask.sum(1) + decoded.lengths)[:, None]
    scores = model.decoder_logits(images, ids, real)[:, :-1].log_softmax(-1)
    picked = scores.gather(-1, ids[..., None])[..., 0]
    for row in range(3):
        first, count = int(prompt.attention_mask[row].sum()), int(decoded.lengths[row])
        torch.testing.assert_close(
            picked[row, first : first + count], decoded.token_log_probs[row, :count], **CLOSE
        )


@torch.no_grad()
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("beams", [1, 3])
def test_batched_equals_single(language: Any, kind: str, beams: int) -> None:
    model, words = language(kind)
    images = soft(model)
    together = written(model, words, PROMPTS, images, num_beams=beams)
    for row in range(3):
        alone = written(model, words, PROMPTS[row : row + 1], images[row : row + 1], num_beams=beams)
        length = int(alone.lengths[0])
        assert int(together.lengths[row]) == length
        assert torch.equal(together.ids[row, :length], alone.ids[0, :length])
    if kind in DECODERS:
        right = written(model, words, PROMPTS, images, num_beams=beams, side="right")
        assert torch.equal(right.ids, together.ids)


@torch.no_grad()
@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("beams", [1, 3])
def test_ids_equal_those_of_transformers(language: Any, kind: str, beams: int) -> None:
    model, words = language(kind)
    images = soft(model)
    side: Any = "right" if model.is_encoder_decoder else "left"
    read = words.prompts(PROMPTS, side=side, end=model.is_encoder_decoder)
    text = model.embed(read.input_ids)
    if model.is_encoder_decoder:
        embeds, mask = model._join(images, read.input_ids, read.attention_mask)
    else:  # transformers wants padding before everything, so the soft prompts stand after it
        rows = [torch.cat((text[i, ~m], images[i], text[i, m])) for i, m in enumerate(read.attention_mask)]
        embeds = torch.stack(rows)
        mask = torch.nn.functional.pad(read.attention_mask, (0, images.shape[1]), value=True)
    expected = model.hf.generate(
        inputs_embeds=embeds, attention_mask=mask.long(), max_new_tokens=8, num_beams=beams, do_sample=False,
        length_penalty=1.0, eos_token_id=words.stop_ids, pad_token_id=words.pad_id,
    )  # fmt: skip
    if model.is_encoder_decoder:
        expected = expected[:, 1:]
    decoded = written(model, words, PROMPTS, images, num_beams=beams, beam_scoring="transformers")
    for row, length in enumerate(decoded.lengths.tolist()):
        assert decoded.ids[row, :length].tolist() == expected[row, :length].tolist()
        assert all(token in (words.pad_id, *words.stop_ids) for token in expected[row, length:].tolist())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_frozen_is_frozen(language: Any, kind: str) -> None:
    model, words = language(kind)
    images = soft(model).requires_grad_()
    model.train()
    assert not any(part.training for part in model.hf.modules())
    text = words.texts(["a red bus", "two dogs", "the road"])
    if model.is_encoder_decoder:
        states, mask = model.encode(images, text.input_ids, text.attention_mask)
        loss = model.target_logits(states, mask, text.input_ids).square().mean()
    else:
        loss = model.decoder_logits(images, text.input_ids, text.attention_mask).square().mean()
    loss.backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("kind", get_args(Kind))
def test_recomputing_gives_the_same_gradient(folders: dict[str, Path], kind: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = make_language(LanguageConfig(source=str(folders[kind])))
        model.gradient_checkpointing_enable(checkpointing)
        model.train()
        images = soft(model).requires_grad_()
        text = LanguageTokenizer.load(folders[kind]).texts(["a red bus", "two dogs", "the road"])
        if model.is_encoder_decoder:
            states = model.encode(images, text.input_ids, text.attention_mask)
            logits = model.target_logits(*states, text.input_ids)
        else:
            logits = model.decoder_logits(images, text.input_ids, text.attention_mask)
        logits.square().mean().backward()
        found.append(images.grad)
    torch.testing.assert_close(found[1], found[0], **CLOSE)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_recomputed_blocks_run_twice_and_never_in_training_mode(folders: dict[str, Path], kind: str) -> None:
    model = make_language(LanguageConfig(source=str(folders[kind])))
    dropout = dropouts(model)
    runs: dict[nn.Module, list[bool]] = {}
    blocks = [part for part in model.hf.modules() if isinstance(part, GradientCheckpointingLayer)]
    for block in blocks:
        # What is inside a block runs when it is recomputed; the block's own hooks may not.
        first = next(part for part in block.modules() if isinstance(part, nn.Linear))
        first.register_forward_pre_hook(lambda part, _: runs[part].append(part.training or owner[part].training))
        runs[first] = []
    owner = dict(zip(runs, blocks, strict=True))
    for checkpointing, times in ((True, 2), (False, 1)):
        model.gradient_checkpointing_enable(checkpointing)
        model.train()
        images = soft(model).requires_grad_()
        ids = torch.full((3, 4), 5)
        if model.is_encoder_decoder:
            states = model.encode(images, ids, torch.ones_like(ids).bool())
            logits = model.target_logits(*states, ids)
        else:
            logits = model.decoder_logits(images, ids, torch.ones_like(ids).bool())
        assert not any(part.training for part in model.hf.modules())
        logits.square().mean().backward()
        assert all(seen == [False] * times for seen in runs.values())
        for seen in runs.values():
            seen.clear()
    assert dropouts(model) == dropout, "the model's own settings stay"


@torch.no_grad()
def test_its_dtype_is_its_own(folders: dict[str, Path]) -> None:
    model = make_language(LanguageConfig(source=str(folders["opt"]), dtype="bfloat16"))
    text = LanguageTokenizer.load(folders["opt"]).texts(["a red bus"])
    assert model.dtype == torch.bfloat16
    assert model.decoder_logits(soft(model, 1), text.input_ids, text.attention_mask).dtype == torch.bfloat16


def test_a_prompt_that_does_not_fit_is_refused(language: Any) -> None:
    model, words = language("opt")
    assert model.max_length == 64
    with pytest.raises(UserError, match="do not fit the 64 positions"):
        model.decoder_logits(soft(model, 1), torch.zeros(1, 61, dtype=torch.int64), torch.ones(1, 61).bool())
    with pytest.raises(UserError, match="shorten the prompt"):
        written(model, words, ["a " * 60], soft(model, 1))
    assert language("t5")[0].max_length is None  # relative positions know no end
    bart = FrozenLanguage(scaled_heads()["Bart"](), LanguageConfig(source="bart"))
    states = bart.encode(soft(bart, 1), torch.full((1, 4), 5), torch.ones(1, 4).bool())
    assert bart.target_logits(*states, torch.full((1, 64), 5)).shape == (1, 64, 40)
    with pytest.raises(UserError, match="a text of 65 tokens do not fit the 64 positions of bart"):
        bart.target_logits(*states, torch.full((1, 65), 5))


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder of a language model"):
        make_language(LanguageConfig(source=str(tmp_path)))
    with pytest.raises(UserError, match="lora_rank"):
        LanguageConfig(lora_rank=-1)


class _Bare:
    """A tokenizer of transformers without pad or end tokens."""

    is_fast, eos_token_id, pad_token_id = True, None, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [7]}


def test_a_tokenizer_without_end_or_padding() -> None:
    with pytest.raises(UserError, match="no end token"):
        LanguageTokenizer(_Bare())
    named = LanguageTokenizer(_Bare(), end="\n")
    assert (named.eos_id, named.pad_id, named.stop_ids) == (7, 7, [7])
    slow = _Bare()
    slow.is_fast = False  # type: ignore[misc]
    with pytest.raises(UserError, match="no fast version"):
        LanguageTokenizer(slow)


def test_what_is_scored(language: Any) -> None:
    _, words = language("opt")
    batch = words.texts(["a red bus", "two dogs"], prompts=["a photo of", ""])
    assert words.hf.convert_ids_to_tokens(batch.input_ids[0].tolist()) == (
        ["<s>", "a", "photo", "of", "a", "red", "bus", "</s>"]
    )
    assert batch.scored[0].tolist() == [False] * 4 + [True] * 4
    assert batch.scored[1].tolist() == [False, True, True, True] + [False] * 4
    assert batch.attention_mask[1].sum() == 4
    assert words.decode(batch.input_ids[0, 4:]) == "a red bus"
    _, words = language("t5")  # closes what it encodes itself; ours stands once
    assert words.hf.convert_ids_to_tokens(words.texts(["two dogs"]).input_ids[0].tolist()) == [
        "two",
        "dogs",
        "</s>",
    ]
    assert words.prompts(["two dogs"], side="right", end=True).input_ids.shape == (1, 3)
    assert words.prompts(["two dogs"], side="right").input_ids.shape == (1, 2)
