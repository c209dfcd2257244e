"""A Q-Former of stage 2 reads questions again: it gets the text side of a model of stage 1, or of a BERT.

Stage 2 leaves the text side out, files of LAVIS and transformers do not have it, and the paper's fine-tuning for
questions needs it.
"""

from __future__ import annotations

from dataclasses import replace

from openblip.checkpoints.bert import bert_config, load_bert_into_qformer
from openblip.checkpoints.recognise import family_of
from openblip.checkpoints.state import find
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.configs import QFormerConfig
from openblip.models.qformer import QFormer
from openblip.tasks.config import RunConfig
from openblip.tasks.families.blip2 import Blip2Adapter, open_blip2

__all__ = ["give_text_side"]

_SAME = ("width", "depth", "num_heads", "inner_width")
"""sizes that a text side has to share with the Q-Former that it comes into"""


def give_text_side(stored: Blip2Adapter, config: RunConfig) -> None:
    """Let the Q-Former of `stored` read texts, by what `config.text_pretrained` names.

    All that stage 2 has trained stays: queries, self-attention, cross-attention and the queries' feed-forwards.

    Raises:
        UserError: the run asks no questions, the model reads texts already or has no language model, or what is
            named cannot be opened or has other sizes.
    """
    model, source = stored.model, config.text_pretrained
    if config.task != "answering" or model.language is None or model.config.qformer.vocab_size is not None:
        raise UserError(f"{config.model} has its Q-Former and keeps it; leave {source} out")
    own = model.config.qformer
    if _is_blip2(source):
        donor = open_blip2(source, tokenizer=config.tokenizer or None)
        tokenizer, theirs = donor.tokenizer, donor.model.config.qformer
        if tokenizer is None:
            raise UserError(f"the Q-Former of {source} reads no text; name a model of stage 1, or a BERT")
        if others := [name for name in _SAME if getattr(theirs, name) != getattr(own, name)]:
            values = ", ".join(f"{name} {getattr(theirs, name)}, not {getattr(own, name)}" for name in others)
            raise UserError(f"the text side of {source} does not fit {config.model}: {values}")
        # Not the tokenizer's count: LAVIS' files have no row for [ENC], which ours knows.
        qformer = QFormer(_reading(own, theirs.vocab_size, theirs.max_positions, tokenizer))
        read = donor.model.qformer.state_dict()
    else:
        tokenizer = TextTokenizer.load(config.tokenizer or source)
        qformer = QFormer(_reading(own, tokenizer.vocab_size, bert_config(source).max_positions, tokenizer))
        load_bert_into_qformer(qformer, source)
        read = qformer.state_dict()
    kept = model.qformer.state_dict()
    text = {name: read[name] for name in qformer.state_dict() if name not in kept}
    qformer.load_state_dict(kept | text)
    model.qformer = qformer
    model.config = replace(model.config, qformer=qformer.config)
    stored.tokenizer = tokenizer
    stored.begun.append(
        f"the Q-Former of {config.model} reads questions by the embeddings and the text feed-forwards of {source}"
    )


def _reading(
    own: QFormerConfig, vocab_size: int | None, max_positions: int, tokenizer: TextTokenizer
) -> QFormerConfig:
    return replace(own, vocab_size=vocab_size, max_positions=max_positions, pad_id=tokenizer.pad_id, writes=False)


def _is_blip2(source: str) -> bool:
    try:
        return family_of(find(source)) == "blip2"
    except UserError:
        return False
