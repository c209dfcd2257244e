"""Starting a newly initialized text transformer from a BERT, as the paper does: everything but cross-attention.

Both self-attentions, the encoder's and the decoder's, start from BERT's one. Our embeddings have no token types;
BERT's first type, which it adds to every token of a single text, goes into the position embeddings, so that the
encoder without an image gives BERT's own hidden states.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from openblip.checkpoints.blip import head_rules, self_attention_rules, transformer_rules
from openblip.checkpoints.keymap import Rule, import_state
from openblip.core.errors import UserError, first_line
from openblip.core.places import wrong_place
from openblip.models.blip import Blip
from openblip.models.qformer import QFormer
from openblip.models.text import TextConfig

__all__ = ["load_bert", "load_bert_into_qformer"]

ENCODER, DECODER = "text_encoder", "text_decoder.transformer"
WORDS, POSITIONS, TYPES = (
    f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
)
_HEAD = "cls.predictions."
_SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "inner_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
}


def load_bert(model: Blip, name: str) -> None:
    """Start the text side of `model` from a BERT; cross-attention stays as it is.

    Rows of the word embeddings beyond BERT's vocabulary ([DEC] and [ENC]) stay too, and so does the language
    head where the BERT brings none.

    Args:
        name: a folder that transformers' `save_pretrained` wrote, or a hub name.

    Raises:
        UserError: it cannot be read, is no BERT, or has other sizes.
    """
    sizes, state = _read(name)
    _check_sizes(sizes, model.config.text, name)
    own = model.state_dict()
    part = ENCODER if model.config.encoder else DECODER
    rules = transformer_rules(model.config.text.depth, part, "bert", cross_attention=False)
    if model.config.encoder and model.config.decoder:
        for i in range(model.config.text.depth):
            rules += self_attention_rules(
                f"{DECODER}.blocks.{i}.self_attention", f"bert.encoder.layer.{i}.attention"
            )
    new = own[f"{part}.embeddings.word.weight"][sizes["vocab_size"] :]
    state[WORDS] = torch.cat((state[WORDS], new.to(state[WORDS])))
    state[POSITIONS] = state[POSITIONS] + state[TYPES][0]
    if model.config.decoder and any(key.startswith(_HEAD) for key in state):
        rules += _head(state, own["text_decoder.head.bias"][sizes["vocab_size"] :])
    shapes = {key: value.shape for key, value in own.items()}
    used = {name for rule in rules for name in rule.theirs}
    model.load_state_dict(
        import_state(rules, state, shapes, source=f'"{name}"', ignored=set(state) - used), strict=False
    )


def load_bert_into_qformer(qformer: QFormer, name: str) -> None:
    """Start BLIP-2's Q-Former from a BERT, as `load_bert`: its text side, self-attention, and language head."""
    assert qformer.config.vocab_size is not None
    sizes, state = _read(name)
    config = qformer.config
    text = replace(config.text, depth=config.depth, inner_width=config.inner_width)
    _check_sizes(sizes, text, name)
    own = qformer.state_dict()
    rules = []
    for rule in transformer_rules(config.depth, "", "bert", cross_attention=False):
        ours = rule.ours.removeprefix(".").replace(".feed_forward.", ".text_feed_forward.")
        ours = ours.replace("embeddings.norm.", "embed_norm.").removeprefix("embeddings.")
        rules.append(replace(rule, ours=ours))
    state[WORDS] = torch.cat((state[WORDS], own["word.weight"][sizes["vocab_size"] :].to(state[WORDS])))
    state[POSITIONS] = state[POSITIONS] + state[TYPES][0]
    if qformer.head is not None and any(key.startswith(_HEAD) for key in state):
        new = own["head.bias"][sizes["vocab_size"] :]
        rules += [replace(r, ours=r.ours.removeprefix("text_decoder.")) for r in _head(state, new)]
    shapes = {key: value.shape for key, value in own.items()}
    used = {key for rule in rules for key in rule.theirs}
    ours_state = import_state(rules, state, shapes, source=f'"{name}"', ignored=set(state) - used)
    qformer.load_state_dict(ours_state, strict=False)


def _head(state: dict[str, Tensor], new_bias: Tensor) -> list[Rule]:
    bias = f"{_HEAD}bias"
    state[bias] = torch.cat((state[bias], new_bias.to(state[bias])))
    return head_rules("text_decoder.head", "cls")


def _read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Its configuration, and its tensors under the names of transformers' `BertForMaskedLM`."""
    from transformers import BertForMaskedLM, PretrainedConfig
    from transformers.utils import logging

    spoken = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells of a missing head, which we may do without
    try:
        sizes, _ = PretrainedConfig.get_config_dict(name)
        kind = sizes.get("model_type", "bert")
        if kind != "bert":
            raise UserError(f'"{name}" is of the kind {kind}; the text transformer can start from a BERT only')
        loaded: Any = BertForMaskedLM.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    except UserError:
        raise
    except SafetensorError as error:
        if message := wrong_place(name):
            raise UserError(message) from error
        raise UserError(f'"{name}" is damaged or cut short: {error}') from error
    except (OSError, ValueError, RuntimeError) as error:
        if message := wrong_place(name):
            raise UserError(message) from error
        reason = first_line(error)
        raise UserError(
            f'"{name}" is neither the folder of a BERT nor one that the hub or its cache gives: {reason}'
        ) from error
    finally:
        logging.set_verbosity(spoken)
    donor, found = loaded
    missing = sorted(key for key in found["missing_keys"] if key.startswith("bert.") and "position_ids" not in key)
    if missing:
        raise UserError(f'"{name}" is no whole BERT: it has no "{missing[0]}"')
    headless = any(key.startswith(_HEAD) and "decoder" not in key for key in found["missing_keys"])
    state = {
        key: value.detach() for key, value in donor.state_dict().items() if not (headless and key.startswith(_HEAD))
    }
    return donor.config.to_dict(), state


def _check_sizes(theirs: dict[str, Any], ours: TextConfig, name: str) -> None:
    differ = [
        f"{field} {theirs[their_field]} against {getattr(ours, field)}"
        for field, their_field in _SIZES.items()
        if theirs[their_field] != getattr(ours, field)
    ]
    if differ:
        raise UserError(
            f'"{name}" does not fit this text transformer: {", ".join(differ)}; take a BERT of the model\'s sizes, '
            "or leave text_pretrained out"
        )
    if theirs["vocab_size"] > ours.vocab_size:
        raise UserError(
            f'"{name}" knows {theirs["vocab_size"]} tokens and the tokenizer {ours.vocab_size}; '
            f"use its own tokenizer: tokenizer={name}"
        )
    if theirs["hidden_act"] != "gelu":
        raise UserError(f'"{name}" computes with {theirs["hidden_act"]} where BERT does with gelu')
