"""Starting a newly initialized text transformer from a BERT, as the paper does: everything but cross-attention.

Both self-attentions, the encoder's and the decoder's, start from BERT's one. Our embeddings have no token types;
BERT's first type, which it adds to every token of a single text, goes into the position embeddings, so that the
encoder without an image gives BERT's own hidden states.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.blip import head_rules, self_attention_rules, transformer_rules
from openblip.checkpoints.keymap import Rule, import_state
from openblip.core.errors import UserError
from openblip.models.blip import Blip
from openblip.models.configs import QFormerConfig, QFormerSettings, TextConfig
from openblip.models.opening import opening
from openblip.models.qformer import QFormer

__all__ = ["SIZES", "bert_config", "load_bert", "load_bert_into_qformer", "qformer_sizes"]

ENCODER, DECODER = "text_encoder", "text_decoder.transformer"
WORDS, POSITIONS, TYPES = (
    f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
)
HEAD = "text_decoder.head"
_HEAD = "cls.predictions."
_BIAS = f"{_HEAD}bias"
SIZES = ("width", "depth", "num_heads", "inner_width", "max_positions", "layer_norm_eps")
"""fields of `TextConfig` that a text transformer must share with its BERT"""


def bert_config(name: str) -> TextConfig:
    """Sizes of a BERT as those of a text transformer without cross-attention; its weights are not read.

    Args:
        name: a folder that transformers' `save_pretrained` wrote, or a hub name.

    Raises:
        UserError: it cannot be read, or is no BERT.
    """
    from transformers import BertConfig, PretrainedConfig

    with _opening(name):
        described, _ = PretrainedConfig.get_config_dict(name)
        if (kind := described.get("model_type", "bert")) != "bert":
            raise UserError(f'"{name}" is of the kind {kind}; the text transformer can start from a BERT only')
        theirs: Any = BertConfig.from_dict(described)
    if theirs.hidden_act != "gelu":
        raise UserError(f'"{name}" computes with {theirs.hidden_act} where BERT does with gelu')
    if (positions := described.get("position_embedding_type", "absolute")) != "absolute":
        raise UserError(
            f'"{name}" has positions of the kind {positions}; the text transformer has absolute ones, '
            "a table with a row for each position"
        )
    return TextConfig(
        vocab_size=theirs.vocab_size,
        width=theirs.hidden_size,
        depth=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        inner_width=theirs.intermediate_size,
        max_positions=theirs.max_position_embeddings,
        memory_width=None,
        layer_norm_eps=theirs.layer_norm_eps,
        pad_id=theirs.pad_token_id or 0,
    )


def load_bert(model: Blip, name: str) -> str:
    """Start the text side of `model` from a BERT; cross-attention stays as it is.

    Rows of the word embeddings beyond BERT's vocabulary ([DEC] and [ENC]) stay too, and so does the language
    head where the BERT brings none.

    Args:
        name: as for `bert_config`.

    Returns:
        what was taken over and what is newly drawn, in a line.

    Raises:
        UserError: it cannot be read, is no BERT, or has other sizes.
    """
    bert, state = _read(name, model.config.text)
    own = model.state_dict()
    part = ENCODER if model.config.encoder else DECODER
    rules = transformer_rules(model.config.text.depth, part, "bert", cross_attention=False)
    if model.config.encoder and model.config.decoder:
        for i in range(model.config.text.depth):
            rules += self_attention_rules(
                f"{DECODER}.blocks.{i}.self_attention", f"bert.encoder.layer.{i}.attention"
            )
    bias = own.get(f"{HEAD}.bias")
    _load(model, rules, state, name, words=own[f"{part}.embeddings.word.weight"], bias=bias)
    taken, drawn = ["embeddings", "self-attention", "feed-forward"], ["cross-attention"]
    if bias is not None:
        (taken if _has_head(state) else drawn).append("the language head's transform")
    if model.config.encoder:
        drawn += ["projections of ITC", "the ITM head"]
    return _told("Text transformer", name, bert, taken, drawn)


def qformer_sizes(
    settings: QFormerSettings, usual: QFormerConfig, name: str, known: TextConfig | None = None
) -> QFormerConfig:
    """Of a Q-Former from scratch: as it is set, as the BERT that it starts from has it, or as in `usual`.

    Args:
        name: of the BERT, as for `bert_config`; "" for none.
        known: its sizes; None reads them.

    Raises:
        UserError: the BERT cannot be read, or has another size than is set.
    """
    sizes = {field: value for field, value in vars(settings).items() if value is not None}
    if name:
        bert = known or bert_config(name)
        theirs = {field: getattr(bert, field) for field in SIZES}
        if differ := [field for field in SIZES if sizes.get(field, theirs[field]) != theirs[field]]:
            raise UserError(
                f'"{name}" has {differ[0]} {theirs[differ[0]]} and the setting qformer.{differ[0]} asks for '
                f"{sizes[differ[0]]}; leave the setting out, since a Q-Former takes its sizes from the BERT that "
                "it starts from"
            )
        sizes |= theirs
    return replace(usual, **sizes)


def load_bert_into_qformer(qformer: QFormer, name: str) -> str:
    """Start BLIP-2's Q-Former from a BERT, as `load_bert`: its text side, self-attention, and language head.

    The queries' feed-forwards start as the text's, as in the reference.
    """
    config = qformer.config
    assert config.vocab_size is not None
    bert, state = _read(name, replace(config.text, depth=config.depth, inner_width=config.inner_width))
    own = qformer.state_dict()
    rules = []
    for rule in transformer_rules(config.depth, "", "bert", cross_attention=False):
        ours = rule.ours.removeprefix(".").replace(".feed_forward.", ".text_feed_forward.")
        ours = ours.replace("embeddings.norm.", "embed_norm.").removeprefix("embeddings.")
        rules.append(replace(rule, ours=ours))
    _load(qformer, rules, state, name, words=own["word.weight"], bias=own.get("head.bias"), head="head")
    qformer.start_queries_as_text()
    _scale_cross_attention(qformer)
    reading = [str(i) for i, block in enumerate(qformer.qformer_blocks) if block.cross_attention is not None]
    taken = [
        "embeddings",
        "self-attention",
        "text feed-forward (also into the queries' feed-forward, as in the reference)",
    ]
    drawn = ["queries", f"cross-attention of layer{'s' * (len(reading) > 1)} {', '.join(reading)}"]
    if qformer.head is not None:
        (taken if _has_head(state) else drawn).append("the language head's transform")
    return _told("Q-Former", name, bert, taken, [*drawn, "projections of ITC", "the ITM head"])


@torch.no_grad()
def _scale_cross_attention(qformer: QFormer) -> None:
    """Give new cross-attention of a narrow Q-Former the standard deviation of its BERT's self-attention.

    A small BERT has larger weights than a new layer (MiniLM, 384 wide: 0.065 against 0.028), beside which an image
    is hardly read at first. The paper's width keeps the reference's 0.02.
    """
    if qformer.config.width >= 768:
        return
    for block in qformer.qformer_blocks:
        if (cross := block.cross_attention) is not None:
            for layer in (cross.query, cross.key_value, cross.output):
                layer.weight.mul_(block.self_attention.qkv.weight.std() / layer.weight.std())


def _told(what: str, name: str, bert: TextConfig, taken: list[str], drawn: list[str]) -> str:
    short = Path(name).name if Path(name).is_dir() else name
    return (
        f"{what} from {short}: {bert.depth} layers, {bert.width} wide, vocabulary {bert.vocab_size:,}; "
        f"taken: {', '.join(taken)}; drawn: {', '.join(drawn)}"
    )


def _load(
    model: nn.Module,
    rules: list[Rule],
    state: dict[str, Tensor],
    name: str,
    *,
    words: Tensor,
    bias: Tensor | None,
    head: str = HEAD,
) -> None:
    """Load BERT's tensors by `rules`.

    Args:
        words: the model's word embeddings, whose rows beyond BERT's vocabulary are kept.
        bias: of the model's language head `head`; None without one.
    """
    known = len(state[WORDS])
    state[WORDS] = torch.cat((state[WORDS], words[known:].to(state[WORDS])))
    state[POSITIONS] = state[POSITIONS] + state[TYPES][0]
    if bias is not None and _has_head(state):
        state[_BIAS] = torch.cat((state[_BIAS], bias[known:].to(state[_BIAS])))
        rules = rules + head_rules(head, "cls")
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    used = {key for rule in rules for key in rule.theirs}
    ours = import_state(rules, state, shapes, source=f'"{name}"', ignored=set(state) - used)
    model.load_state_dict(ours, strict=False)


def _has_head(state: dict[str, Tensor]) -> bool:
    return _BIAS in state


def _opening(name: str) -> AbstractContextManager[None]:
    return opening(name, "the folder of a BERT")


def _read(name: str, ours: TextConfig) -> tuple[TextConfig, dict[str, Tensor]]:
    """Its sizes, which must be `ours`, and its tensors under the names of transformers' `BertForMaskedLM`."""
    from transformers import BertForMaskedLM

    bert = bert_config(name)
    _check_sizes(bert, ours, name)
    with _opening(name):
        loaded: Any = BertForMaskedLM.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    donor, found = loaded
    missing = sorted(key for key in found["missing_keys"] if key.startswith("bert.") and "position_ids" not in key)
    if missing:
        raise UserError(f'"{name}" is no whole BERT: it has no "{missing[0]}"')
    headless = any(key.startswith(_HEAD) and "decoder" not in key for key in found["missing_keys"])
    state = {
        key: value.detach() for key, value in donor.state_dict().items() if not (headless and key.startswith(_HEAD))
    }
    return bert, state


def _check_sizes(theirs: TextConfig, ours: TextConfig, name: str) -> None:
    differ = [
        f"{field} {getattr(theirs, field)} against {getattr(ours, field)}"
        for field in SIZES
        if getattr(theirs, field) != getattr(ours, field)
    ]
    if differ:
        raise UserError(
            f'"{name}" does not fit this text transformer: {", ".join(differ)}; take a BERT of the model\'s sizes, '
            "or a model of the BERT's sizes: --model from-parts"
        )
    if theirs.vocab_size > ours.vocab_size:
        raise UserError(
            f'"{name}" has embeddings of {theirs.vocab_size} tokens and the tokenizer has {ours.vocab_size}; '
            f"take its own tokenizer (--tokenizer {name}) or, where that is the one, cut the embeddings to its "
            "tokens: bert.resize_token_embeddings(len(tokenizer)) of transformers"
        )
