"""A captioner that samples captions and learns from their rewards (`objectives.selfcritical`).

The decoder samples and scores without dropout: the log-likelihoods are those of the distribution that was sampled
from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openblip.core.tokenizer import TextTokenizer
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.generation.types import Decoded
from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory
from openblip.models.stepper import DecoderStepper
from openblip.objectives.configs import SelfCriticalConfig
from openblip.objectives.language import language_loss, language_targets
from openblip.objectives.selfcritical import CaptionRewards, advantages, self_critical_loss
from openblip.tasks.step import PairBatch, TrainingStep

__all__ = ["SelfCritical", "SelfCriticalStep"]

_MOST = 2**62


class SelfCriticalStep(TrainingStep[PairBatch]):
    """`SelfCritical` over `PairBatch`es, whose texts it does not read."""

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        return self.objective(self.model.vision.normalize(batch.images), batch.image_ids)


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
        prompt_ids = tokenizer.prompts([prompt]).input_ids
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
        memory = self.model.remember(self.model.encode_image(images))
        decoder, training = self.model.decoder, self.model.training
        decoder.eval()
        try:
            sampled = self._write(memory.detach(), image_ids, self.config.samples)
            rewards = self._rewards(sampled, image_ids).view(len(images), -1)
            told = {"reward": rewards.mean()}
            greedy = None
            if self.config.baseline == "greedy":
                greedy = self._rewards(self._write(memory.detach(), image_ids, 0), image_ids)
                told["reward_greedy"] = greedy.mean()
            log_probs = self._log_probs(memory, sampled)
        finally:
            decoder.train(training)
        advantage = advantages(rewards, greedy).flatten()
        return {"loss": self_critical_loss(advantage, log_probs, sampled.lengths), **told}

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
