"""VQA's loss: each answer to a question is a text to write, weighted by how many people gave it."""

from __future__ import annotations

from torch import Tensor, nn

from openblip.core.tokenizer import TokenBatch
from openblip.models.vqa import BlipVqa
from openblip.objectives.language import language_loss, language_targets

__all__ = ["VqaObjective"]


class VqaObjective(nn.Module):
    """A VQA model with its loss (Li et al. 2022, section 5.3).

    Args:
        enc_id: id of [ENC], with which a question begins.
        dec_id: id of [DEC], with which an answer begins.
        label_smoothing: the reference trains with 0.1.
    """

    def __init__(self, model: BlipVqa, *, enc_id: int, dec_id: int, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.model = model
        self.enc_id, self.dec_id = enc_id, dec_id
        self.label_smoothing = label_smoothing

    def forward(
        self,
        images: Tensor,
        questions: TokenBatch,
        answers: TokenBatch,
        question_of: Tensor | None,
        weights: Tensor,
        *,
        image_of: Tensor | None = None,
        num_questions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of Q questions about B images, and A answers.

        An image is encoded and its memory projected once for its questions, the states of a question once for its
        answers: they are gathered, or shared where there are equally many for each.

        Args:
            images: normalised [B, 3, H, W].
            questions: ids [Q, T]; the first token is replaced by [ENC].
            answers: ids [A, T'], the first token is replaced by [DEC].
            question_of: int64 [A], the question that each answer belongs to; None when each has equally many,
                which stand together.
            weights: float [A], of the answers; those of a question usually sum to one.
            image_of: int64 [Q], likewise the image that each question is about.
            num_questions: divide by this scalar in place of Q: the mean over ranks and micro-batches that hold
                unequally many.

        Returns:
            scalar "loss": over all answers the weighted sum of their cross-entropies, divided by Q.
        """
        model = self.model
        question_ids, answer_ids = questions.input_ids.clone(), answers.input_ids.clone()
        question_ids[:, 0].fill_(self.enc_id)
        answer_ids[:, 0].fill_(self.dec_id)
        memory = model.remember(model.encode_image(images))
        if image_of is not None:
            memory = memory.select(image_of)
        states = model.read_question(question_ids, questions.attention_mask, memory)
        read = model.remember_question(states, questions.attention_mask)
        if question_of is not None:
            read = read.select(question_of)
        logits = model.text_decoder(answer_ids, answers.attention_mask, memory=read)
        targets = language_targets(answer_ids, answers.attention_mask)
        losses = language_loss(logits, targets, label_smoothing=self.label_smoothing, per_text=True)
        total = (losses * weights.to(losses.dtype)).sum() / (
            len(questions) if num_questions is None else num_questions
        )
        return {"loss": total, "loss_vqa": total.detach()}
