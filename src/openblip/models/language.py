"""The frozen language model of BLIP-2: a decoder or encoder-decoder of transformers, behind soft prompts.

The images' soft prompts stand before the text's embeddings. A decoder (OPT, Llama, Qwen, ...) continues from them;
an encoder-decoder (T5, ...) reads them with a prefix and writes the rest. Frozen is frozen: no gradient, no
dropout, no optimiser state, its own dtype under any autocast, evaluation mode always. Its matrices may be kept in
eight or four bits. With LoRA (Hu et al. 2021) small matrices beside its projections are trained, and they alone.

Shapes: B images, Q soft prompts, T text tokens, L width of the embeddings, V vocabulary.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from openblip.core.compute import DTYPES, frozen_dtype, to_dtype
from openblip.core.errors import UserError, first_line, require
from openblip.core.places import gguf_file, wrong_place
from openblip.core.weights import stored_tensors
from openblip.models.configs import LanguageConfig
from openblip.models.language_kinds import (
    OTHER_DECODERS,
    can_step,
    empty_cache,
    encoded,
    first_position,
    made_of_decoders,
    reads_ids,
    start_id,
)
from openblip.models.opening import quietly
from openblip.models.products import use_onednn
from openblip.models.recompute import recompute

__all__ = ["FrozenLanguage", "make_language"]

_CACHES = {"cache", "past_key_values"}
"""how transformers names what a decoder has read"""


class FrozenLanguage(nn.Module):
    """A language model of transformers that reads embeddings.

    Args:
        model: a `...ForCausalLM` or `...ForConditionalGeneration` of transformers.
    """

    def __init__(self, model: Any, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config = replace(config, dtype=frozen_dtype(config.dtype))
        self.hf = model
        use_onednn(model)
        described = model.config.get_text_config()
        # That of a decoder inside (T5Gemma's) does not say that there is an encoder.
        self.is_encoder_decoder = bool(described.is_encoder_decoder or model.config.is_encoder_decoder)
        self.width = int(model.get_input_embeddings().embedding_dim)
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        positions = getattr(described, "max_position_embeddings", None) or getattr(described, "n_positions", None)
        relative = self.is_encoder_decoder and hasattr(described, "relative_attention_num_buckets")
        self._options = set(inspect.signature(model.forward).parameters)
        self._places = "position_ids" in self._options and not self.is_encoder_decoder
        self._first_position = first_position(model) if self._places else 0
        behind = self._first_position  # positions that no token has
        self.max_length: int | None = None if relative or positions is None else int(positions) - behind
        self.start_id = start_id(model) if self.is_encoder_decoder else None
        if self.is_encoder_decoder and described.model_type in OTHER_DECODERS:
            raise UserError(
                f"{config.source} ({described.model_type}) has a decoder that is read otherwise; choose another "
                "language model"
            )
        if self.is_encoder_decoder and self.start_id is None:
            raise UserError(f"{config.source} does not say with which token its decoder starts")
        if not self.is_encoder_decoder and not (self._options & _CACHES and can_step(model)):
            raise UserError(
                f"{config.source} ({described.model_type}) keeps what it has read in a way of its own, so it "
                "cannot write for several beams or images at once; choose another language model"
            )
        if reads_ids(model):
            raise UserError(
                f"{config.source} ({described.model_type}) reads the ids of tokens in every block, which soft "
                "prompts do not have; choose another language model"
            )
        if config.quantize == "none" and self.dtype != DTYPES[config.dtype]:
            self.to_dtype(DTYPES[config.dtype])
        model.requires_grad_(False)
        if config.lora_rank:
            self.add_lora(config)
        self.hf.eval()

    @property
    def bos_first(self) -> bool:
        """Whether a text's first token stands before the soft prompts."""
        return self.config.bos == "first"

    def settle_bos(self, puts_bos: bool) -> None:
        """Settle where [BOS] stands for a model that is newly trained.

        Decoders learned texts that begin with [BOS], and some (Gemma) read badly what begins otherwise. OPT keeps
        the paper's order.

        Args:
            puts_bos: whether its tokenizer puts [BOS] before every text.

        Raises:
            UserError: it is to be first, and there is none.
        """
        has_one = puts_bos and not self.is_encoder_decoder
        if self.config.bos == "first" and puts_bos and self.is_encoder_decoder:
            raise UserError(
                f"the encoder of {self.config.source} reads [BOS] with the text; leave language.bos out, which is "
                "for decoders"
            )
        if self.config.bos == "first" and not has_one:
            raise UserError(
                f"the texts of {self.config.source} do not begin with [BOS], so it cannot be first; leave "
                "language.bos out"
            )
        wanted = self.config.bos
        if wanted == "auto":
            wanted = "first" if has_one and self.hf.config.model_type != "opt" else "none"
        self.config = replace(self.config, bos=wanted)

    def add_lora(self, config: LanguageConfig) -> None:
        """Put trained low-rank matrices beside its projections, which change nothing before they are trained."""
        self.hf, self.config = _with_lora(self.hf, config), config
        for name, parameter in self.hf.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.hf.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Of its embeddings."""
        return self.hf.get_input_embeddings().weight.dtype

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Change the dtype as transformers reads weights in it.

        Tables that are computed (rotary frequencies) stay in float32, and in float16 so do the matrices that
        overflow there (T5's `wo`). LoRA's matrices keep theirs.
        """
        names = getattr(self.hf, "_keep_in_fp32_modules", None) if dtype == torch.float16 else None
        wide = set(names or ())
        named = self.hf.named_parameters()
        to_dtype(self.hf, dtype, but=[v for name, v in named if "lora_" in name or wide & set(name.split("."))])

    @property
    def may_change_dtype(self) -> bool:
        """Whether it is in float32 because nothing else was requested, and no matrix is quantized."""
        return self.dtype == torch.float32 and self.config.quantize == "none"

    def plain(self, *, merged: bool) -> tuple[Any, dict[str, Tensor]]:
        """The model of transformers without LoRA around it, and its weights in their own names.

        Args:
            merged: with what LoRA has learned added in; without it, as they were.
        """
        base = self.hf.get_base_model() if self.config.lora_rank else self.hf
        learned = {name: part for name, part in base.named_modules() if hasattr(part, "get_delta_weight")}
        state: dict[str, Tensor] = {}
        for key, value in stored_tensors(base, every_name=True).items():
            owner, _, rest = key.partition(".base_layer.")
            if merged and rest == "weight" and owner in learned:
                value = value + learned[owner].get_delta_weight("default").to(value.dtype)
            if ".lora_" not in key:
                state[f"{owner}.{rest}" if rest else owner] = value
        return base, state

    def train(self, mode: bool = True) -> FrozenLanguage:
        """Stay in evaluation mode, without dropout, whatever the parent does."""
        super().train(mode)
        self.hf.eval()
        return self

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """Recompute a share of its blocks in the backward pass, which needs them for the soft prompts' gradient.

        Args:
            share: of the blocks, from the first, 0 to 1; 0 recomputes none.

        Raises:
            UserError: a share above 0 of a model whose blocks transformers does not mark.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        # transformers recomputes blocks that are in training mode, and these would draw dropout.
        blocks = [part for part in self.hf.modules() if isinstance(part, GradientCheckpointingLayer)]
        if share and not blocks:
            raise UserError(
                f"{self.config.source} has no blocks that can be recomputed; set train.gradient_checkpointing to 0"
            )
        recompute(blocks, share, within=self)

    def new_cache(self) -> Any:
        """What a decoder keeps of the tokens that it has read: nothing yet."""
        return empty_cache(self.hf)

    def embed(self, input_ids: Tensor) -> Tensor:
        """[R, T] -> [R, T, L]."""
        return self.hf.get_input_embeddings()(input_ids)

    def check_room(self, num_soft: int, length: int) -> None:
        """Refuse more tokens than it has positions for."""
        if self.max_length is not None and num_soft + length > self.max_length:
            what = f"{num_soft} soft prompts and a text" if num_soft else "a text"
            raise UserError(
                f"{what} of {length} tokens do not fit the {self.max_length} positions of {self.config.source}; "
                "shorten the prompt or the text"
            )

    def decoder_logits(
        self,
        soft: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        places: Tensor | None = None,
        *,
        before: int | None = None,
    ) -> Tensor:
        """A decoder's logits [R, 1 + T, V]: those at place t predict text token t, the last what would follow.

        Args:
            soft: soft prompts [R, Q, L].
            input_ids: [R, T], padded on the right.
            places: int64 [S], of tokens in the flattened [R * T]: logits [S, V] that predict these alone.
            before: tokens that stand before the soft prompts; None is [BOS] where that is first, else none.
        """
        self.check_room(soft.shape[1], input_ids.shape[1])
        embeds, mask = self._join(soft, input_ids, attention_mask, before)
        length = input_ids.shape[1] + 1
        inputs: dict[str, Any] = {"inputs_embeds": embeds, "attention_mask": mask, "use_cache": False}
        with torch.autocast(soft.device.type, enabled=False):
            if places is not None:
                row = places.div(length - 1, rounding_mode="floor")
                start = row * embeds.shape[1] + soft.shape[1] - 1  # what predicts token 0 of the row
                return self._logits_at(start + places % (length - 1), inputs)
            return self._run(**inputs).logits[:, -length:]

    def encode(self, soft: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """An encoder-decoder's reading of soft prompts and prefix: states [R, Q + T, L'] and their mask."""
        self.check_room(soft.shape[1], input_ids.shape[1])
        embeds, mask = self._join(soft, input_ids, attention_mask)
        with torch.autocast(soft.device.type, enabled=False):
            reads = self._who_sees_whom(mask, embeds.shape[1], causal=False)
            states = self.hf.get_encoder()(inputs_embeds=embeds, attention_mask=reads).last_hidden_state
        return states, mask

    def target_logits(
        self, states: Tensor, mask: Tensor, target_ids: Tensor, places: Tensor | None = None
    ) -> Tensor:
        """An encoder-decoder's logits [R, T, V] for targets [R, T]: those at place t predict target t.

        Args:
            places: int64 [S], of targets in the flattened [R * T]: logits [S, V] that predict these alone.
        """
        assert self.start_id is not None, "a decoder is read by decoder_logits"
        self.check_room(0, target_ids.shape[1])
        start = torch.full_like(target_ids[:, :1], self.start_id)
        written = torch.cat((start, target_ids[:, :-1]), dim=1)
        inputs: dict[str, Any] = {"encoder_outputs": encoded(states), "attention_mask": mask, "use_cache": False}
        inputs["decoder_input_ids"] = written
        with torch.autocast(states.device.type, enabled=False):
            return self._run(**inputs).logits if places is None else self._logits_at(places, inputs)

    def _logits_at(self, places: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Logits [S, V] at places of the flattened sequences: its head reads the hidden states of those alone.

        The choice is made where the model calls its head, so that what it does before and after (OPT's projection,
        T5's and Cohere's scales, Gemma 2's cap) stays its own code.
        """
        chosen = False

        def choose(head: nn.Module, hidden: tuple[Tensor, ...]) -> tuple[Tensor]:
            nonlocal chosen
            chosen = True
            return (hidden[0].flatten(0, -2)[places][None],)

        hook = self.hf.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            logits: Tensor = self._run(**inputs).logits.flatten(0, -2)
        finally:
            hook.remove()
        return logits if chosen else logits[places]  # a model may multiply by its embeddings without a head

    def _join(
        self, soft: Tensor, input_ids: Tensor, attention_mask: Tensor, before: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Soft prompts and text as one sequence, [R, Q + T, L], and its mask; `before`: see `decoder_logits`."""
        text, begun = self.embed(input_ids), int(self.bos_first) if before is None else before
        with torch.autocast(soft.device.type, enabled=False):  # it would join no half precision but its own
            embeds = torch.cat((text[:, :begun], soft.to(text.dtype), text[:, begun:]), dim=1)
        real = attention_mask.new_ones(soft.shape[:2])
        return embeds, torch.cat((attention_mask[:, :begun], real, attention_mask[:, begun:]), dim=1)

    def _run(self, *, attention_mask: Tensor, cache: Any = None, padded: bool = True, **inputs: Any) -> Any:
        """One forward; positions are counted over real tokens, so that padding changes nothing.

        Args:
            padded: whether the mask has a False somewhere; with a cache alone.
        """
        if cache is not None:
            # Newer versions of transformers warn of the older name.
            inputs["cache" if "cache" in self._options else "past_key_values"] = cache
        if self._places:
            embeds = inputs["inputs_embeds"]
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -embeds.shape[1] :] + self._first_position
        length = inputs["decoder_input_ids" if self.is_encoder_decoder else "inputs_embeds"].shape[1]
        if cache is not None:
            seen: Tensor | None = attention_mask.long()
            if length == 1 and (reads := self._who_sees_whom(attention_mask, 1, causal=False)).ndim == 4:
                seen = reads if padded else None
            return self.hf(attention_mask=seen, **inputs)
        seen = self._who_sees_whom(attention_mask, length, causal=not self.is_encoder_decoder)
        return self.hf(attention_mask=seen, **inputs)

    def _who_sees_whom(self, mask: Tensor, rows: int, *, causal: bool) -> Tensor:
        """The mask of a whole pass of `rows` tokens over those of `mask` [R, S], bool [R, 1, rows, S].

        Given the tokens' mask alone, transformers looks whether any is padding, and a training step waits for it.
        Models whose attention is not torch's, or is more than causal, get the tokens' mask, int64 [R, S].
        """
        described = self.hf.config.get_text_config()
        windows = [getattr(described, name, None) for name in ("sliding_window", "attention_chunk_size")]
        full = all(window is None or window >= mask.shape[1] for window in windows)
        kinds = set(getattr(described, "layer_types", None) or ())
        placed = self.is_encoder_decoder or "position_ids" in self._options
        if (
            described._attn_implementation != "sdpa"
            or not (full and placed)
            or not kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
            or getattr(described, "alibi", False)
            or made_of_decoders(self.hf)  # the windows of encoder and decoder differ
        ):
            return mask.long()
        seen = mask[:, None, None, :].expand(-1, 1, rows, -1)
        if not causal:
            return seen
        return seen & torch.ones(rows, mask.shape[1], dtype=torch.bool, device=mask.device).tril()


def make_language(config: LanguageConfig, *, pretrained: bool = True) -> FrozenLanguage:
    """Open the language model that `config` names.

    Args:
        pretrained: with its weights; False draws them (they are about to be replaced).

    Raises:
        UserError: there is no such model, it is neither a decoder nor an encoder-decoder, or an extra is missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = replace(config, dtype=frozen_dtype(config.dtype))
    place, inside = gguf_file(config.source)
    options: dict[str, Any] = {"dtype": DTYPES[config.dtype], **inside}
    if config.quantize != "none":
        if inside:
            raise UserError(f"{config.source} is read into whole matrices; leave language.quantize out")
        options["quantization_config"] = _fewer_bits(config)
    try:
        described: Any = AutoConfig.from_pretrained(place, **inside)
        if described.model_type in ("blip-2", "instructblip"):  # the language model inside
            described = described.text_config
            options |= {"config": described, "key_mapping": {r"^language_model\.": ""}}
        auto: Any = AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForCausalLM
        if pretrained:
            with quietly():
                model, loaded = auto.from_pretrained(place, output_loading_info=True, **options)
        else:
            model, loaded = auto.from_config(described), {}
    except UserError:
        raise
    except Exception as error:
        if message := wrong_place(config.source):
            raise UserError(message) from error
        if not isinstance(error, OSError | ValueError | KeyError | SafetensorError):
            raise
        raise UserError(
            f'"{config.source}" is neither a folder of a language model of transformers nor one that the hub or '
            f"its cache gives: {first_line(error)}"
        ) from error
    if missing := sorted(loaded.get("missing_keys", ())):  # transformers draws them, and warns
        raise UserError(f'{config.source} has no "{missing[0]}"; it is incomplete or of another model')
    return FrozenLanguage(model, config)


def _fewer_bits(config: LanguageConfig) -> Any:
    require("bitsandbytes", "quantize")
    from transformers import BitsAndBytesConfig

    if config.quantize == "8bit":
        # Said for every product: LLM.int8() computes in float16, whatever the rest is kept in.
        warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
        return BitsAndBytesConfig(load_in_8bit=True)
    computes = DTYPES[config.dtype]
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computes)


def _with_lora(model: Any, config: LanguageConfig) -> Any:
    """The model with low-rank matrices beside its projections."""
    peft: Any = require("peft", "lora")
    settings = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets) or None,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(
            f"peft does not find the layers of {config.source} that LoRA goes to ({first_line(error)}); "
            "name them: language.lora_targets"
        ) from error
