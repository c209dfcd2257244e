"""Self-critical training of captions (Rennie et al., CVPR 2017): what raises CIDEr-D becomes likelier.

Captions are sampled from the model itself; each is rewarded with its CIDEr-D against its image's references, less a
baseline: the mean reward of the image's other samples (Luo 2020) or that of the greedy caption (Rennie et al.).
The loss is minus this advantage times the caption's log-likelihood, so its gradient is that of the expected reward.
The end of a caption counts as a word of its own, else captions that stop before their last word pay off.

Sampling and scoring run without dropout: the log-likelihoods are those of the distribution that was sampled from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.core.runtime import average
from openblip.core.tokenizer import TextTokenizer
from openblip.generation.decode import decode
from openblip.generation.types import DecodeConfig, Decoded
from openblip.metrics.caption import CiderD
from openblip.metrics.words import split_words
from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory
from openblip.models.stepper import DecoderStepper
from openblip.objectives.language import language_loss, language_targets

__all__ = ["CaptionRewards", "SelfCritical", "SelfCriticalConfig"]

_END = "</s>"
_MOST = 2**62


@dataclass(frozen=True, kw_only=True)
class SelfCriticalConfig:
    """Training a captioner with CIDEr-D as reward."""

    samples: int = 0
    """Captions sampled for each image; 0 trains by likelihood (LM). 5 is usual."""
    baseline: Literal["samples", "greedy"] = "samples"
    """What an image's reward is compared with: the mean of its other samples, or the greedy caption."""
    max_new_tokens: int = 20
    """Most tokens of a sampled caption, the end token included."""

    def __post_init__(self) -> None:
        if self.samples < 0 or self.max_new_tokens < 1:
            raise UserError("scst.samples cannot be negative, and scst.max_new_tokens must be at least 1")
        if self.samples == 1 and self.baseline == "samples":
            raise UserError('scst.samples = 1 leaves no other sample to compare with; set scst.baseline = "greedy"')


class CaptionRewards:
    """CIDEr-D of captions against the references of their images.

    Args:
        references: for each image, by its id, the words of its captions as `words_of` gives them. Their document
            frequencies weigh the n-grams.
    """

    def __init__(self, references: Mapping[int, Sequence[Sequence[str]]]) -> None:
        self._references = references
        self._cider = CiderD.of(list(references.values()))

    @staticmethod
    def words_of(text: str, *, ended: bool = True) -> list[str]:
        """Words of a caption, with one more where it ended."""
        return [*split_words(text), *([_END] if ended else [])]

    def of(self, image: int, words: Sequence[str]) -> float:
        """From 0 to 10."""
        return self._cider.score(words, self._references[image])


class SelfCritical(nn.Module):
    """A captioner with its reward.

    Args:
        model: with a decoder.
        prompt: how every caption begins; it carries no loss and no reward.
    """

    def __init__(
        self,
        model: Blip,
        config: SelfCriticalConfig,
        tokenizer: TextTokenizer,
        rewards: CaptionRewards,
        *,
        prompt: str = "",
    ) -> None:
        super().__init__()
        self.model, self.config, self.tokenizer, self.rewards = model, config, tokenizer, rewards
        prompt_ids = tokenizer.encode([prompt], first="dec", end=False).input_ids
        self.prompt_ids: Tensor
        self.register_buffer("prompt_ids", prompt_ids, persistent=False)

    def forward(self, images: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            images: normalised [B, 3, H, W].
            image_ids: int64 [B], ids of the references.

        Returns:
            scalars: "loss", and "reward", the mean CIDEr-D of the samples (that of the greedy captions is
            "reward_greedy", where they are the baseline).
        """
        training = self.model.training
        self.model.eval()
        try:
            memory = self.model.remember(self.model.encode_image(images))
            sampled = self._write(memory.detach(), image_ids, self.config.samples)
            rewards = self._rewards(sampled, image_ids).view(len(images), -1)
            told = {"reward": rewards.mean()}
            if self.config.baseline == "greedy":
                greedy = self._rewards(self._write(memory.detach(), image_ids, 0), image_ids)[:, None]
                told["reward_greedy"] = greedy.mean()
                advantages = rewards - greedy
            else:
                others = (rewards.sum(1, keepdim=True) - rewards) / (self.config.samples - 1)
                advantages = rewards - others
            log_probs = self._log_probs(memory, sampled)
        finally:
            self.model.train(training)
        # Divided by the tokens of an average process, so that the mean over processes is that over all tokens.
        num_tokens = average(sampled.lengths.sum().float())
        return {"loss": -(advantages.flatten() * log_probs).sum() / num_tokens, **told}

    def _write(self, memory: ImageMemory, image_ids: Tensor, samples: int) -> Decoded:
        """Captions: `samples` for each image, or a greedy one."""
        config = DecodeConfig(max_new_tokens=self.config.max_new_tokens)
        keys = None
        if samples:
            # Drawn from torch's generator on the CPU, which a checkpoint holds: a resumed run samples the same.
            # The image makes it another one on each process.
            draw = torch.randint(_MOST, (len(image_ids),))
            keys = (draw ^ image_ids.cpu()).to(image_ids.device)
            config = DecodeConfig(sample=True, num_sequences=samples, max_new_tokens=self.config.max_new_tokens)
        return decode(
            DecoderStepper(self.model.decoder, memory),
            self.prompt_ids.expand(len(image_ids), -1),
            None,
            config,
            eos_ids=self.tokenizer.sep_id,
            pad_id=self.tokenizer.pad_id,
            keys=keys,
        )

    def _rewards(self, decoded: Decoded, image_ids: Tensor) -> Tensor:
        """CIDEr-D of each caption, float32 [S]."""
        ids = image_ids.tolist()
        values = [
            self.rewards.of(ids[row], self.rewards.words_of(self.tokenizer.decode(tokens), ended=ended))
            for row, tokens, _, ended in decoded.texts()
        ]
        return torch.tensor(values, device=image_ids.device)

    def _log_probs(self, memory: ImageMemory, decoded: Decoded) -> Tensor:
        """Log-likelihood of each caption after its prompt, [S], with gradient."""
        prompt_ids = self.prompt_ids.expand(memory.batch_size, -1)
        start = prompt_ids.shape[1]
        ids = decoded.with_prompts(prompt_ids, pad_id=self.tokenizer.pad_id)
        mask = torch.arange(ids.shape[1], device=ids.device) < start + decoded.lengths[:, None]
        logits = self.model.decoder(ids, mask, memory=memory)
        return -language_loss(logits, language_targets(ids, mask, start), label_smoothing=0.0, per_text=True)
