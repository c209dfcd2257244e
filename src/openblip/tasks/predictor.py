"""A trained model in a few words: caption, match, embed, search.

    model = openblip.load("runs/demo/captioner/model")
    model.caption(["a.jpg", "b.jpg"])                    # [[Caption], [Caption]]
    model.match("a.jpg", ["a red bus", "two dogs"])      # [[Match, Match]]
    model.retrieve_images(find_images(["pictures/"]), ["a red bus"], top=5)     # [[Found, ...]]

Pictures are paths, PIL images, uint8 arrays [H, W, 3] or encoded bytes; one or many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.checkpoints.store import open_model
from openblip.core.errors import UserError
from openblip.core.runtime import choose_device, choose_dtype
from openblip.core.tokenizer import TextTokenizer
from openblip.data.images import IMAGE_SUFFIXES, decode_image
from openblip.data.sample import BrokenSample, ImageLike, stable_id
from openblip.data.transforms import clean_caption, evaluation_transform, normalize
from openblip.generation.types import DecodeConfig
from openblip.models.blip import Blip
from openblip.tasks.caption import Caption, write_captions
from openblip.tasks.retrieval import embed_texts, match_logits, match_probability

__all__ = ["Found", "Match", "Predictor", "find_images"]

Pictures = ImageLike | str | Sequence[ImageLike | str]


@dataclass(frozen=True, slots=True)
class Match:
    """How well a text fits a picture."""

    text: str
    itm_probability: float
    """that they belong together, by ITM"""
    itc_similarity: float
    """cosine of their embeddings"""


@dataclass(frozen=True, slots=True)
class Found:
    """A result of a search."""

    item: str
    """path of a picture, or a text"""
    score: float
    """ITC similarity + ITM logit where ITM read the pair, else ITC similarity"""
    itc_similarity: float
    itm_probability: float | None
    """None where only ITC was asked"""


class Predictor:
    """A model with what it needs to be used: tokenizer, image transform, device and dtype.

    Args:
        info: what the model's folder tells of it ("prompt", "clean").
    """

    def __init__(
        self,
        model: Blip,
        tokenizer: TextTokenizer,
        info: dict[str, Any] | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> None:
        self.device, self.dtype, self.batch_size = torch.device(device), dtype, batch_size
        self.model = model.to(self.device, dtype).eval()
        self.tokenizer = tokenizer
        self.info = info or {}
        self._transform = evaluation_transform(model.config.vision.image_size)

    @classmethod
    def load(
        cls,
        source: Path | str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        image_size: int | None = None,
        tokenizer: str | None = None,
    ) -> Predictor:
        """Open a model folder or an original checkpoint file; see `checkpoints.store.open_model`."""
        stored = open_model(source, tokenizer=tokenizer, image_size=image_size)
        place = choose_device(device)
        return cls(
            stored.model,
            stored.tokenizer,
            stored.info,
            device=place,
            dtype=choose_dtype(dtype, place),
            batch_size=batch_size,
        )

    @property
    def prompt(self) -> str:
        """How the model was trained to begin its captions."""
        return str(self.info.get("prompt", ""))

    def pixels(self, pictures: Sequence[ImageLike | str]) -> Tensor:
        """Decoded and resized pictures, uint8 [B, 3, S, S].

        Raises:
            UserError: one cannot be read; names it.
        """
        rows = []
        rng = np.random.default_rng(0)  # the evaluation transform draws nothing
        for picture in pictures:
            source = Path(picture) if isinstance(picture, str) else picture
            try:
                decoded = decode_image(source, min_side=self._transform.min_side)
            except BrokenSample as error:
                name = str(source) if isinstance(source, Path) else error.key
                raise UserError(f"{name or 'a picture'} cannot be used ({error.cause}): {error.detail}") from error
            rows.append(self._transform(decoded, rng))
        return torch.stack(rows)

    @torch.no_grad()
    def encode(self, pictures: Sequence[ImageLike | str]) -> Tensor:
        """image_embeds [B, N, Dv] of up to a batch of pictures."""
        return self.model.encode_image(normalize(self.pixels(pictures).to(self.device), self.dtype))

    def _batches(self, pictures: Pictures) -> Iterator[list[ImageLike | str]]:
        one = isinstance(pictures, str | bytes | Path | Image.Image | np.ndarray)
        many: list[Any] = [pictures] if one else list(cast(Sequence[Any], pictures))
        for start in range(0, len(many), self.batch_size):
            yield many[start : start + self.batch_size]

    def _clean(self, text: str) -> str:
        how = self.info.get("clean", "simplify")
        return text if how == "none" else clean_caption(text, None, simplify=how == "simplify")

    def _cut(self) -> int:
        return self.model.config.text.max_positions

    def caption(
        self, pictures: Pictures, config: DecodeConfig | None = None, *, prompt: str | None = None
    ) -> list[list[Caption]]:
        """Write captions: for each picture `config.num_sequences` of them.

        Args:
            config: None is beam search with 3 beams, 5 to 20 new tokens.
            prompt: how captions begin; None is what the model was trained with.
        """
        config = config or DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=20)
        begin = self.prompt if prompt is None else prompt
        captions: list[list[Caption]] = []
        for batch in self._batches(pictures):
            # Sampling is keyed by the picture's name, so that a picture's texts do not depend on its batch.
            keys = torch.tensor([_key(picture, len(captions) + i) for i, picture in enumerate(batch)])
            memory = self.model.remember(self.encode(batch))
            captions += write_captions(
                self.model, self.tokenizer, memory, config, prompts=begin, keys=keys.to(self.device)
            )
        return captions

    @torch.no_grad()
    def match(self, pictures: Pictures, texts: str | Sequence[str]) -> list[list[Match]]:
        """Match every picture with every text; a picture is encoded and its memory projected once."""
        wanted = [texts] if isinstance(texts, str) else list(texts)
        tokens, features = embed_texts(
            self.model, self.tokenizer, [self._clean(text) for text in wanted], max_length=self._cut()
        )
        results: list[list[Match]] = []
        for batch in self._batches(pictures):
            embeds = self.encode(batch)
            cosine = (self.model.image_features(embeds).float() @ features.T).cpu()
            count, number = len(batch), len(wanted)
            pairs = torch.cartesian_prod(torch.arange(number), torch.arange(count)).view(-1, 2)
            logits = match_logits(self.model, self.tokenizer, embeds, tokens, pairs).view(number, count)
            probability = match_probability(logits)
            results += [
                [Match(t, float(probability[j, i]), float(cosine[i, j])) for j, t in enumerate(wanted)]
                for i in range(count)
            ]
        return results

    @torch.no_grad()
    def embed_images(self, pictures: Pictures) -> Tensor:
        """Normalised embeddings for ITC, float32 [B, E] on the CPU."""
        rows = [self.model.image_features(self.encode(batch)).float().cpu() for batch in self._batches(pictures)]
        return torch.cat(rows) if rows else torch.empty(0, self.model.config.embed_dim)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings for ITC, float32 [C, E] on the CPU."""
        cleaned = [self._clean(text) for text in texts]
        return embed_texts(self.model, self.tokenizer, cleaned, max_length=self._cut())[1].cpu()

    @torch.no_grad()
    def retrieve_images(
        self, pictures: Sequence[ImageLike | str], queries: Sequence[str], *, top: int = 5, rerank_k: int = 32
    ) -> list[list[Found]]:
        """The `top` pictures for each text: ITC over all, then ITM over the best `rerank_k` (0: ITC alone)."""
        tokens, features = embed_texts(
            self.model, self.tokenizer, [self._clean(text) for text in queries], max_length=self._cut()
        )
        scores = features.cpu() @ self.embed_images(pictures).T
        return self._order(scores, list(pictures), tokens, top, rerank_k)

    @torch.no_grad()
    def retrieve_texts(
        self, picture: ImageLike | str, texts: Sequence[str], *, top: int = 5, rerank_k: int = 32
    ) -> list[Found]:
        """The `top` texts for a picture, likewise."""
        matches_from = self.embed_images([picture])[0] @ self.embed_texts(texts).T
        best = matches_from.topk(min(max(rerank_k, top), len(texts))).indices
        found = [Found(texts[i], float(matches_from[i]), float(matches_from[i]), None) for i in best.tolist()]
        if rerank_k > 0:
            matched = self.match([picture], [f.item for f in found])[0]
            found = [
                Found(m.text, m.itc_similarity + _logit(m.itm_probability), m.itc_similarity, m.itm_probability)
                for m in matched
            ]
            found.sort(key=lambda f: -f.score)
        return found[:top]

    def _order(
        self, scores: Tensor, pictures: list[ImageLike | str], tokens: Any, top: int, rerank_k: int
    ) -> list[list[Found]]:
        count = min(max(top, rerank_k), len(pictures))
        best = scores.topk(count, dim=1).indices
        chunks = torch.unique(best).split(self.batch_size) if rerank_k > 0 and best.numel() else ()
        logits = torch.full_like(scores, float("nan"))
        # Candidates are encoded again, a batch at a time: features of a whole folder would not fit in memory.
        for chunk in chunks:
            embeds = self.encode([pictures[i] for i in chunk.tolist()])
            wanted = (best[:, :, None] == chunk).any(1).nonzero()
            pairs = torch.stack((wanted[:, 0], wanted[:, 1]), dim=1)
            logits[pairs[:, 0], chunk[pairs[:, 1]]] = match_logits(
                self.model, self.tokenizer, embeds, tokens, pairs
            )
        results = []
        for row, chosen in enumerate(best.tolist()):
            found = []
            for i in chosen:
                cosine, logit = float(scores[row, i]), float(logits[row, i])
                known = rerank_k > 0
                found.append(
                    Found(
                        _name(pictures[i], i),
                        cosine + logit if known else cosine,
                        cosine,
                        float(torch.sigmoid(torch.tensor(logit))) if known else None,
                    )
                )
            results.append(sorted(found, key=lambda f: -f.score)[:top])
        return results


def find_images(places: Iterable[Path | str]) -> list[str]:
    """Picture files among `places`: files as they are, folders searched with their subfolders, globs expanded.

    Raises:
        UserError: a place does not exist, or there is no picture at all.
    """
    found: list[str] = []
    places = list(places)
    for place in places:
        path = Path(place)
        if path.is_dir():
            found += sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.is_file():
            found.append(str(path))
        elif any(c in str(place) for c in "*?["):
            found += sorted(str(p) for p in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
        else:
            raise UserError(f"there is no picture or folder {place}")
    if not found:
        raise UserError(f"there is no picture in {', '.join(map(str, places))}")
    return found


def _key(picture: ImageLike | str, position: int) -> int:
    if isinstance(picture, str | Path):
        return stable_id(Path(picture).name)
    return position


def _name(picture: ImageLike | str, position: int) -> str:
    return str(picture) if isinstance(picture, str | Path) else f"#{position}"


def _logit(probability: float) -> float:
    p = min(max(probability, 1e-7), 1 - 1e-7)
    return float(np.log(p / (1 - p)))
