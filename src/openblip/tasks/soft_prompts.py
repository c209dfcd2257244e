"""A projection into a language model's input space that starts from the data instead of at random.

Drawn at random it gives soft prompts that mean nothing to a frozen language model, and a short training is spent
on finding its space. Here it starts as a least-squares fit: from what the queries give of an image to the mean of
the token embeddings of the image's text, rare tokens weighing more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.data.sample import Batch
from openblip.models.blip2 import Blip2

__all__ = ["fit_projection"]

_RIDGE = 0.01
"""of the mean variance of the queries' features, against directions in which images hardly differ"""


@torch.no_grad()
def fit_projection(
    model: Blip2,
    tokenizer: LanguageTokenizer,
    images: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
) -> float:
    """Fit `language_proj` to images and their texts.

    The soft prompts of the images differ afterwards by the standard deviation that the language model's embeddings
    have, about the mean of their texts.

    Args:
        images: gives what the model encodes of a batch.
        batches: of images and their texts; texts without a token are left out.

    Returns:
        the share of the variance of the texts' means that the fit explains.

    Raises:
        UserError: there are fewer than two images with a text.
    """
    training, device = model.training, model.language_proj.weight.device
    model.eval()
    found: list[Tensor] = []
    texts: list[list[int]] = []
    for batch in batches:
        memory = model.remember(model.encode_pixels(images(batch).to(device)))
        features = model.read_image(memory).mean(1)[batch.image_index.to(device)]  # [T, D]
        ids = [sorted(set(row)) for row in tokenizer.hf(batch.texts, add_special_tokens=False)["input_ids"]]
        found.append(features[[bool(row) for row in ids]].double().cpu())
        texts += [row for row in ids if row]
    model.train(training)
    if len(texts) < 2:
        raise UserError("fit_soft_prompts needs at least two images with a text; leave it out")
    features, targets = torch.cat(found), _means(model, texts)
    x, y = features - features.mean(0), targets - targets.mean(0)
    gram = x.T @ x
    weight = torch.linalg.solve(
        gram + _RIDGE * gram.diagonal().mean().clamp(min=1e-9) * torch.eye(len(gram)).to(gram), x.T @ y
    )
    fitted = x @ weight
    embeddings = model.llm.hf.get_input_embeddings()
    some = torch.arange(0, embeddings.num_embeddings, max(1, embeddings.num_embeddings // 1000))
    spread = embeddings(some.to(embeddings.weight.device)).float().std().item()
    weight *= spread / fitted.std().clamp(min=1e-12)
    model.language_proj.weight.copy_(weight.T)
    model.language_proj.bias.copy_(targets.mean(0) - features.mean(0) @ weight)
    return 1 - ((y - fitted).square().sum() / y.square().sum()).item()


def _means(model: Blip2, texts: list[list[int]]) -> Tensor:
    """Means [T, L] of the token embeddings of texts, each token weighed by its inverse document frequency."""
    embeddings = model.llm.hf.get_input_embeddings()
    counts = Counter(token for row in texts for token in row)
    means = []
    for row in texts:
        weights = torch.tensor([math.log1p(len(texts) / counts[token]) for token in row], dtype=torch.float64)
        vectors = embeddings(torch.tensor(row, device=embeddings.weight.device)).double().cpu()
        means.append(weights @ vectors / weights.sum())
    return torch.stack(means)
