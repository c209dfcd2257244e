"""The tokenizer of a frozen language model: prompts and texts to ids with what is scored, as pure functions.

Which side is padded is an argument and never state, and what is scored is found by character offsets, so that a
token that begins with the prompt's last letters and ends in the text is scored with the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from openblip.core.errors import UserError, first_line
from openblip.core.places import gguf_file, wrong_place

__all__ = ["IMAGE_MARK", "LanguageBatch", "LanguageTokenizer"]

IMAGE_MARK = "\ufffc"
"""where the soft prompts stand in a prompt of a chat; Unicode's sign for an object in a text"""
Side = Literal["left", "right"]


@dataclass(frozen=True)
class LanguageBatch:
    """Ids of a batch of texts."""

    input_ids: Tensor
    """int64 [R, T]"""
    attention_mask: Tensor
    """bool [R, T], True for real tokens"""
    scored: Tensor
    """bool [R, T], True for tokens that the language model is to predict"""
    starts: Tensor
    """bool [R, T], True for tokens that begin a word: where a text may be split into prefix and rest"""
    places: Tensor | None = None
    """int64 [S], of the scored tokens in the flattened [R * T]; found on the CPU, for a GPU to wait for nothing"""
    before: int | None = None
    """tokens of every row that stand before the soft prompts, in a chat; None leaves it to the language model"""

    def __post_init__(self) -> None:
        if self.places is None and self.scored.device.type == "cpu":
            object.__setattr__(self, "places", self.scored_places)

    @property
    def scored_places(self) -> Tensor:
        """`places`, which are looked for here if the batch was made on a device."""
        if self.places is not None:
            return self.places
        return (self.scored & self.attention_mask).flatten().nonzero()[:, 0]

    def targets(self, start_id: int) -> LanguageBatch:
        """The same as targets of an encoder-decoder, [R, T] or [R, T - 1]: every token is scored.

        Args:
            start_id: with which its decoder starts; where the tokenizer puts that before every text too (T5Gemma's
                [BOS]), it is left out.
        """
        twice = self.input_ids.shape[1] > 1 and bool((self.input_ids[:, 0] == start_id).all())
        tensors = (self.input_ids, self.attention_mask, self.starts)
        ids, mask, starts = (tensor[:, int(twice) :] for tensor in tensors)
        return replace(self, input_ids=ids, attention_mask=mask, scored=mask, starts=starts, places=None)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> LanguageBatch:
        """Move all tensors."""
        tensors = (self.input_ids, self.attention_mask, self.scored, self.starts, self.scored_places)
        ids, mask, scored, starts, places = (tensor.to(device, non_blocking=non_blocking) for tensor in tensors)
        return LanguageBatch(ids, mask, scored, starts, places, self.before)

    def __len__(self) -> int:
        return self.input_ids.shape[0]


class LanguageTokenizer:
    """A transformers tokenizer, with its end token and padding settled.

    Args:
        tokenizer: a fast one, since offsets are needed.
        end: text that ends what is written ("\\n" for the published OPT models); "" is the tokenizer's end token.
        begin: the token that stands in place of [BOS]; "" is [BOS].
    """

    def __init__(self, tokenizer: Any, *, end: str = "", begin: str = "", name: str = "the language model") -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(f"the tokenizer of {name} has no fast version, which offsets need; choose one that has")
        self.hf = tokenizer
        self.end = end
        eos = tokenizer.eos_token_id
        if end:
            ids = tokenizer(end, add_special_tokens=False)["input_ids"]
            if not ids:
                raise UserError(
                    f"the tokenizer of {name} has no token for the end {end!r}; name another: language.end"
                )
            eos = ids[-1]
        if eos is None:
            raise UserError(
                f"the tokenizer of {name} has no end token, so nothing it writes would end; name one: "
                'language.end = "\\n"'
            )
        self.eos_id = int(eos)
        """ends what is written"""
        pad = tokenizer.pad_token_id
        self.pad_id = int(self.eos_id if pad is None else pad)
        """fills rows; never read, so any token will do where there is none for it"""
        self.stop_ids = sorted(
            {self.eos_id} | ({int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set())
        )
        """tokens that end generation"""
        self._begin_id = tokenizer.convert_tokens_to_ids(begin) if begin else None
        if begin and tokenizer.convert_ids_to_tokens(self._begin_id) != begin:
            raise UserError(f'the tokenizer of {name} has no token "{begin}" to begin texts with: language.begin')
        if begin and not self.puts_bos:
            raise UserError(
                f'the texts of {name} do not begin with [BOS], in whose place "{begin}" would stand; leave '
                "language.begin out"
            )

    @classmethod
    def load(cls, source: Path | str, *, end: str = "", begin: str = "") -> LanguageTokenizer:
        """Read the tokenizer of a transformers folder or hub name, or of a GGUF file in one."""
        from transformers import AutoTokenizer

        place, options = gguf_file(str(source))
        try:
            found = AutoTokenizer.from_pretrained(place, use_fast=True, **options)
            return cls(found, end=end, begin=begin, name=f'"{source}"')
        except UserError:
            raise
        except Exception as error:  # tokenizers raises no kind of its own
            if message := wrong_place(source):
                raise UserError(message) from error
            raise UserError(f'"{source}" has no tokenizer that can be read: {first_line(error)}') from error

    @classmethod
    def of_words(cls, texts: Iterable[str], *, begins: bool) -> LanguageTokenizer:
        """One for a small model of one's own: every word or sign of `texts` is a token, nothing else is known.

        Args:
            begins: whether a text begins with a token of its own, as a decoder needs; else it ends with one.
        """
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        split = pre_tokenizers.Whitespace()
        words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
        names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        pieces = [*names.values(), *sorted(words - set(names.values()))]
        inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
        inner.pre_tokenizer = split
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A" if begins else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        return cls(PreTrainedTokenizerFast(tokenizer_object=inner, **names))

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.hf)

    @property
    def puts_bos(self) -> bool:
        """Whether every text begins with [BOS], as Gemma's and Llama's do; Qwen's and GPT-2's do not."""
        begun = self.hf("a")["input_ids"][:1]
        return self.hf.bos_token_id is not None and begun == [self.hf.bos_token_id]

    @property
    def has_chat(self) -> bool:
        """Whether its model was tuned on conversations of a known form."""
        return bool(getattr(self.hf, "chat_template", None))

    def chat(self, text: str) -> str:
        """A prompt as a user's turn with the image before `text`, and the model's turn begun.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        return self._rendered([{"role": "user", "content": f"{IMAGE_MARK}{text}"}])

    def placed(self, text: str, *, chat: bool) -> str:
        """A prompt as `prompts` and `texts` take it, in a chat or alone; a mark that is part of it is left out."""
        text = text.replace(IMAGE_MARK, "")
        return self.chat(text) if chat else text

    @cached_property
    def turn_end_id(self) -> int:
        """The token that ends a turn of the model."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": IMAGE_MARK}]
        rest = self._rendered(turns, begun=False).rpartition(IMAGE_MARK)[2].strip()
        ids = self.hf(rest, add_special_tokens=False)["input_ids"]
        return int(ids[0]) if ids else self.eos_id

    def _rendered(self, turns: list[dict[str, str]], *, begun: bool = True) -> str:
        if not self.has_chat:
            raise UserError("this language model's tokenizer has no chat template; leave language.chat out")
        options = {"enable_thinking": False}  # Qwen 3 would write its thoughts first
        return str(self.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun, **options))

    def save(self, folder: Path | str) -> None:
        """Write it as transformers does."""
        self.hf.save_pretrained(folder)

    def prompts(self, texts: Sequence[str], *, side: Side, end: bool = False) -> LanguageBatch:
        """Texts to continue from, each with the tokenizer's special tokens at its beginning.

        Args:
            side: where padding stands.
            end: close with the end token, as what an encoder reads.
        """
        parts = [self._around_image(text) for text in texts]
        rows = [self._plain(after) if before is None else before + self._bare(after) for before, after in parts]
        ids = [[*row, *([self.eos_id] if end else [])] for row in rows]
        none = [[False] * len(row) for row in ids]
        return self._pad(ids, none, none, side, [before for before, _ in parts])

    def texts(
        self, texts: Sequence[str], *, prompts: Sequence[str] | None = None, max_length: int | None = None
    ) -> LanguageBatch:
        """Texts to learn to write, each after its prompt and with the end token; padded on the right.

        Args:
            prompts: read and not scored, one for each text; joined by a space, those of a chat as they are.
            max_length: tokens of a row, in a chat of what is scored; the text is cut, its end token then missing.
        """
        prompts = [""] * len(texts) if prompts is None else list(prompts)
        ids, scored, starts, befores = [], [], [], []
        for prompt, text in zip(prompts, texts, strict=True):
            before, after = self._around_image(prompt)
            begin = after.rstrip() if before is None else after
            space = " " if begin and before is None else ""
            whole = f"{begin}{space}{text.strip()}"
            encoded = self.hf(
                whole,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                add_special_tokens=before is None,
            )
            row: list[int] = list(before or ())
            flags: list[bool] = [False] * len(row)
            words: list[bool] = [False] * len(row)
            for token, (first, last), special in zip(
                encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
            ):
                if special and row and token in (self.eos_id, self.hf.eos_token_id):
                    continue  # its own end token; ours follows
                row.append(token)
                flags.append(not special and last > len(begin))
                words.append(
                    not special and (first == 0 or whole[first : first + 1] == " " or whole[first - 1] == " ")
                )
            row = self._begun(row) if before is None else row
            end = self.eos_id if before is None else self.turn_end_id
            row, flags, words = [*row, end], [*flags, True], [*words, False]
            cut = max_length if max_length is None or before is None else max_length + flags.count(False)
            ids.append(row[:cut])
            scored.append(flags[:cut])
            starts.append(words[:cut])
            befores.append(before)
        return self._pad(ids, scored, starts, "right", befores)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Text of one row of ids, up to the first token that ends it."""
        values = [int(i) for i in ids]
        for place, value in enumerate(values):
            if value in self.stop_ids:
                values = values[:place]
                break
        return str(self.hf.decode(values, skip_special_tokens=True)).strip()

    def _around_image(self, prompt: str) -> tuple[list[int] | None, str]:
        """Ids of what stands before the image, None outside a chat, and the text after it."""
        before, mark, after = prompt.partition(IMAGE_MARK)
        return (self._bare(before), after) if mark else (None, prompt)

    def _begun(self, ids: list[int]) -> list[int]:
        """The same with another token in place of [BOS], where there is one."""
        if self._begin_id is None or ids[:1] != [self.hf.bos_token_id]:
            return ids
        return [self._begin_id, *ids[1:]]

    def _bare(self, text: str) -> list[int]:
        return list(self.hf(text, add_special_tokens=False)["input_ids"])

    def _plain(self, text: str) -> list[int]:
        """Ids with the special tokens at the beginning and without those at the end."""
        encoded = self.hf(text.rstrip(), return_special_tokens_mask=True)
        ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
        while len(ids) > 1 and special[-1]:
            ids.pop()
            special.pop()
        if ids and not text.strip() and ids == [self.hf.eos_token_id] and self.hf.bos_token_id != ids[0]:
            return []
        return self._begun(ids)

    def _pad(
        self,
        ids: list[list[int]],
        scored: list[list[bool]],
        starts: list[list[bool]],
        side: Side,
        befores: Sequence[list[int] | None],
    ) -> LanguageBatch:
        lengths = {None if before is None else len(before) for before in befores}
        assert len(lengths) <= 1, "prompts of one chat template, or none"
        width = max((len(row) for row in ids), default=0)
        input_ids = torch.full((len(ids), width), self.pad_id, dtype=torch.int64)
        flags = torch.zeros(3, len(ids), width, dtype=torch.bool)
        for i, row in enumerate(ids):
            place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            input_ids[i, place] = torch.tensor(row, dtype=torch.int64)
            flags[0, i, place] = True
            flags[1, i, place] = torch.tensor(scored[i], dtype=torch.bool)
            flags[2, i, place] = torch.tensor(starts[i], dtype=torch.bool)
        return LanguageBatch(input_ids, flags[0], flags[1], flags[2], before=next(iter(lengths), None))
