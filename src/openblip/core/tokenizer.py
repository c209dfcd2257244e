"""Text to ids and back, with the two tokens BLIP adds: [DEC] begins a text to write, [ENC] a text to match.

The vocabulary is BERT's (`from_vocab`), that of any transformers tokenizer (`load`), or one trained on
the captions at hand (`train`). Encoding is a pure function: nothing about padding is state.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import decoders as token_decoders
from torch import Tensor

from openblip.core.errors import UserError, about, first_line
from openblip.core.files import write_text
from openblip.core.kinds import instead_of_text, looks_like, read_head
from openblip.core.places import wrong_place
from openblip.core.text import read_json, read_lines, read_text, refuse_broken

__all__ = ["First", "TextTokenizer", "TokenBatch"]

First = Literal["cls", "enc", "dec"]
DEC, ENC = "[DEC]", "[ENC]"
# BERT cuts Chinese into single characters; the spaces that come of it are no part of the text.
IDEOGRAPH = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
BETWEEN_IDEOGRAPHS = re.compile(f"(?<={IDEOGRAPH}) (?={IDEOGRAPH})")


@dataclass(frozen=True)
class TokenBatch:
    """Ids of a batch of texts, padded on the right to its longest."""

    input_ids: Tensor
    """int64 [B, T]"""
    attention_mask: Tensor
    """bool [B, T], True for real tokens"""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TokenBatch:
        """Move both tensors."""
        tensors = (self.input_ids, self.attention_mask)
        return TokenBatch(*(tensor.to(device, non_blocking=non_blocking) for tensor in tensors))

    def __len__(self) -> int:
        return self.input_ids.shape[0]


class TextTokenizer:
    """A `tokenizers.Tokenizer` with named special tokens.

    Args:
        tokenizer: must know `cls`, `sep`, `pad`; [DEC] and [ENC] are added when they are missing.
    """

    def __init__(self, tokenizer: Tokenizer, *, cls: str = "[CLS]", sep: str = "[SEP]", pad: str = "[PAD]") -> None:
        for name in (cls, sep, pad):
            if tokenizer.token_to_id(name) is None:
                raise UserError(f"the vocabulary has no {name} token; use a BERT-like one or train your own")
        # One at a time and in this order: the published checkpoints have [DEC] at 30522, [ENC] at 30523.
        for name in (DEC, ENC):
            if tokenizer.token_to_id(name) is None:
                tokenizer.add_special_tokens([name])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._joins_words = isinstance(tokenizer.decoder, token_decoders.WordPiece)
        self._names = {"cls": cls, "sep": sep, "pad": pad}
        self.cls_id, self.sep_id, self.pad_id, self.dec_id, self.enc_id = (
            _known_id(tokenizer, name) for name in (cls, sep, pad, DEC, ENC)
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, [DEC] and [ENC] included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def unk_id(self) -> int | None:
        """The id of what the vocabulary does not have; None where it has everything (bytes)."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        return None if name is None else self._tokenizer.token_to_id(name)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` drops."""
        return frozenset({self.cls_id, self.sep_id, self.pad_id, self.dec_id, self.enc_id})

    def encode(
        self, texts: Sequence[str], *, first: First = "cls", max_length: int | None = None, end: bool = True
    ) -> TokenBatch:
        """Encode texts, padded to the longest among them.

        Args:
            first: what the text is for: "cls" to encode it alone, "enc" to match it, "dec" to write it.
            max_length: longest row in tokens, the first and the last special token included; the rest is cut.
            end: whether to close with [SEP]; a prompt to be continued does not.

        Raises:
            UserError: a text is no Unicode, see `refuse_broken`.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts, not one text; put it in a list")
        start = {"cls": self.cls_id, "enc": self.enc_id, "dec": self.dec_id}[first]
        tail = [self.sep_id] if end else []
        room = None if max_length is None else max(max_length - 1 - len(tail), 0)
        try:
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as error:  # what it says of a text that is no Unicode
            refuse_broken(texts)
            raise error
        rows = [[start, *encoding.ids[:room], *tail] for encoding in encodings]
        return self.pad(rows)

    def prompts(self, texts: Sequence[str]) -> TokenBatch:
        """Encode how texts to write begin; a blank at the end is that before the first word of the rest."""
        return self.encode([text.rstrip() for text in texts], first="dec", end=False)

    def encode_after(
        self, prompt: str, texts: Sequence[str], *, first: First = "dec", max_length: int | None = None
    ) -> tuple[TokenBatch, int]:
        """Encode texts that begin with a prompt, a blank between them whether the prompt ends with one or not.

        Args:
            first: as in `encode`.
            max_length: as in `encode`.

        Returns:
            the texts, and how many of their first tokens are `prompts`' for all of them.
        """
        begin = prompt.rstrip()
        whole = [f"{begin} {text}" for text in texts] if begin else texts
        return self.encode(whole, first=first, max_length=max_length), self.prompts([prompt]).input_ids.shape[1]

    def pad(self, rows: Sequence[Sequence[int]]) -> TokenBatch:
        """Stack rows of ids, padded on the right to the longest."""
        width = max((len(row) for row in rows), default=0)
        input_ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            attention_mask[i, : len(row)] = True
        return TokenBatch(input_ids, attention_mask)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Text of one row of ids; special tokens are dropped, and all that follows the first [SEP]."""
        values = [int(i) for i in (ids.tolist() if isinstance(ids, Tensor) else ids)]
        if self.sep_id in values:
            values = values[: values.index(self.sep_id)]
        text = str(self._tokenizer.decode([i for i in values if i not in self.special_ids])).strip()
        if self._joins_words:
            # BERT's decoder goes token by token and so misses this one, which the original joins in the whole text.
            text = text.replace(" ' ", "'")
        return BETWEEN_IDEOGRAPHS.sub("", text)

    def decode_batch(self, rows: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """`decode` for each row."""
        return [self.decode(row) for row in rows]

    def tokens(self, ids: Tensor | Sequence[int]) -> list[str]:
        """The piece each id stands for."""
        return [str(self._tokenizer.id_to_token(int(i))) for i in ids]

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers reads too."""
        folder = Path(folder)
        write_text(folder / "tokenizer.json", self._tokenizer.to_str(pretty=True))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "cls_token": self._names["cls"],
            "sep_token": self._names["sep"],
            "pad_token": self._names["pad"],
            "bos_token": DEC,
            "additional_special_tokens": [ENC],
            "model_max_length": 512,
        }
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        if unknown:
            config["unk_token"] = unknown
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_vocab(cls, path: Path | str, *, lowercase: bool = True) -> TextTokenizer:
        """Read a BERT WordPiece vocabulary (`vocab.txt`, one piece a line)."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no vocabulary file {path}")
        return cls(_bert_tokenizer(models.WordPiece(read_vocab(path), unk_token="[UNK]"), lowercase=lowercase))

    @classmethod
    def load(cls, source: Path | str) -> TextTokenizer:
        """Read a folder with tokenizer.json or vocab.txt, one of these files, or a tokenizer by its hub name.

        tokenizer_config.json beside vocab.txt says, as for transformers, whether case and accents count
        (do_lower_case, strip_accents), and how Chinese is cut (tokenize_chinese_chars).

        Raises:
            UserError: there is none, or its files are damaged.
        """
        try:
            with about(source):
                return cls._load(source)
        except UserError:
            raise
        except Exception as error:  # values of other kinds than a tokenizer's files hold
            message = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{source} holds no tokenizer that can be read ({message}); fetch it again") from error

    @classmethod
    def _load(cls, source: Path | str) -> TextTokenizer:
        folder = Path(source)
        if folder.is_file():
            if folder.name == "tokenizer_config.json" or folder.suffix not in (".txt", ".json"):
                raise UserError(f"{folder} is no tokenizer; give a folder, a tokenizer.json or a vocab.txt")
            folder, only = folder.parent, folder.name
        else:
            only = ""
        if only.endswith(".json") or (not only and (folder / "tokenizer.json").is_file()):
            return cls(_read_tokenizer(folder / (only or "tokenizer.json")), **_names(_settings(folder)))
        if only or (folder / "vocab.txt").is_file():
            return cls._from_pieces(folder / (only or "vocab.txt"), _settings(folder))
        if folder.exists():
            raise UserError(
                f"{folder} holds neither tokenizer.json nor vocab.txt; name the tokenizer it was trained with: "
                "--tokenizer FOLDER, or a hub name"
            )
        if message := wrong_place(source):
            raise UserError(message)
        return cls._from_hub(str(source))

    @classmethod
    def _from_pieces(cls, path: Path, settings: dict[str, Any]) -> TextTokenizer:
        """A vocabulary as transformers' BertTokenizer reads it by the settings beside it."""
        names = _names(settings)
        tokenizer = _bert_tokenizer(
            models.WordPiece(read_vocab(path), unk_token=_content(settings.get("unk_token") or "[UNK]")),
            lowercase=_flag(path, settings, "do_lower_case", True) is not False,
            strip_accents=_flag(path, settings, "strip_accents", None),
            chinese=_flag(path, settings, "tokenize_chinese_chars", True) is not False,
            ends=(names.get("cls", "[CLS]"), names.get("sep", "[SEP]")),
        )
        for name, number in _added(path.parent, settings):
            if tokenizer.token_to_id(name) is None:
                tokenizer.add_special_tokens([name])
            if (found := tokenizer.token_to_id(name)) != number:
                raise UserError(
                    f'{path} and the added tokens beside it do not agree: "{name}" would be {found}, not {number}; '
                    "take both from one place"
                )
        return cls(tokenizer, **names)

    @classmethod
    def _from_hub(cls, name: str) -> TextTokenizer:
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(name, use_fast=True)
        except Exception as error:  # tokenizers raises no kind of its own
            raise UserError(
                f'"{name}" is neither a folder nor a tokenizer that the hub or its cache gives: {first_line(error)}'
            ) from error
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f'the tokenizer "{name}" has no fast version; choose one that has')
        names = {"cls": loaded.cls_token or loaded.bos_token, "sep": loaded.sep_token or loaded.eos_token}
        names["pad"] = loaded.pad_token or names["sep"]
        missing = [kind for kind, token in names.items() if not token]
        if missing:
            raise UserError(f'the tokenizer "{name}" has no {" and no ".join(missing)} token')
        return cls(Tokenizer.from_str(backend.to_str()), **names)

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int = 8000, lowercase: bool = True) -> TextTokenizer:
        """Learn a WordPiece vocabulary from `captions`, in any script, with room for [DEC] and [ENC].

        Accents and vowel signs are kept, which BERT's English vocabulary drops. The same captions give the
        same vocabulary, always.
        """
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", DEC, ENC]
        if vocab_size <= len(specials):
            raise UserError(
                f"a vocabulary of {vocab_size} has no room for words; take at least {len(specials) + 1}"
            )
        draft = _bert_tokenizer(models.WordPiece({}, unk_token="[UNK]"), lowercase=lowercase, strip_accents=False)
        captions = list(captions)
        letters, inner = _letters(draft, captions)
        if not letters:
            raise UserError("there is no text to train a tokenizer on; check the captions")
        # The trainer numbers pieces in the order of a hash table and breaks ties by number; named beforehand,
        # in order, they are always the same. The rarest letters of very many give way to words.
        room = max((vocab_size - len(specials)) // 2, 1)
        kept = set(sorted(letters, key=lambda c: (-letters[c], c))[:room])
        pieces = [*sorted(kept), *(f"##{c}" for c in sorted(inner & kept))]
        rare = str.maketrans(dict.fromkeys(set(letters) - kept, " "))
        trainer = trainers.WordPieceTrainer(
            vocab_size=max(vocab_size, len(specials) + len(pieces)),
            min_frequency=1,
            special_tokens=[*specials, *pieces],
            limit_alphabet=len(kept),
            show_progress=False,
        )
        normalise = draft.normalizer.normalize_str
        draft.train_from_iterator((normalise(c).translate(rare) for c in captions) if rare else captions, trainer)
        # The draft takes every piece it was given for a special token; a tokenizer of the vocabulary does not.
        model = models.WordPiece(draft.get_vocab(), unk_token="[UNK]")
        tokenizer = _bert_tokenizer(model, lowercase=lowercase, strip_accents=False)
        tokenizer.add_special_tokens(specials)
        return cls(tokenizer)


def _letters(tokenizer: Tokenizer, captions: Sequence[str]) -> tuple[Counter[str], set[str]]:
    """How often each letter stands in the words of `captions`, and those that stand inside a word."""
    words: Counter[str] = Counter()
    for caption in captions:
        normal = tokenizer.normalizer.normalize_str(caption)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    return letters, {letter for word in words for letter in word[1:]}


def _known_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    assert found is not None, name
    return found


def _content(token: str | dict[str, str]) -> str:
    return token["content"] if isinstance(token, dict) else token


def read_vocab(path: Path) -> dict[str, int]:
    """The pieces of a vocabulary and their ids, which are the numbers of their lines from 0.

    Raises:
        UserError: it is no text, or of another kind.
    """
    if found := looks_like(read_head(path)):
        raise UserError(f"{path} is no vocabulary: it {found}")
    # Of a piece that stands twice the later line counts, and what is added is numbered by the count of different
    # pieces, as in transformers: models were trained with that.
    return {piece: number for number, piece in enumerate(read_lines(path))}


def _settings(folder: Path) -> dict[str, Any]:
    """What stands in tokenizer_config.json, if it is there."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no settings of a tokenizer: it must be a JSON object")
    return settings


def _flag(path: Path, settings: dict[str, Any], name: str, default: bool | None) -> bool | None:
    """A setting that is true or false, as it changes which ids a text has."""
    value = settings.get(name, default)
    if value is not default and not isinstance(value, bool):
        raise UserError(
            f"{name} in {path.parent / 'tokenizer_config.json'} must be true or false, not {json.dumps(value)}"
        )
    return value


def _names(settings: dict[str, Any]) -> dict[str, str]:
    return {n: _content(settings[f"{n}_token"]) for n in ("cls", "sep", "pad") if settings.get(f"{n}_token")}


def _added(folder: Path, settings: dict[str, Any]) -> list[tuple[str, int]]:
    """Tokens that were added to a vocabulary, in the order of their ids."""
    file = folder / "added_tokens.json"
    stored = read_json(file) if file.is_file() else {}
    if not isinstance(stored, dict) or not all(type(number) is int for number in stored.values()):
        raise UserError(f"{file} holds no added tokens: it must be a JSON object of tokens and their ids")
    added: dict[str, int] = dict(stored)
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        added.setdefault(_content(token), int(number))
    return sorted(added.items(), key=lambda pair: pair[1])


def _read_tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(read_text(file))
    except UserError:
        raise
    except Exception as error:  # the library raises no kind of its own
        found = instead_of_text(read_head(file))
        message = f"it {found}" if found else first_line(error)
        raise UserError(f"{file} is no tokenizer that can be read: {message}") from error


def _bert_tokenizer(
    model: models.WordPiece,
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese: bool = True,
    ends: tuple[str, str] = ("[CLS]", "[SEP]"),
) -> Tokenizer:
    """BERT's cutting of texts; accents are dropped with the case unless `strip_accents` says otherwise."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = token_decoders.WordPiece(prefix="##")
    cls, sep = ends
    if tokenizer.token_to_id(cls) is not None and tokenizer.token_to_id(sep) is not None:
        tokenizer.post_processor = processors.BertProcessing(
            (sep, _known_id(tokenizer, sep)), (cls, _known_id(tokenizer, cls))
        )
    return tokenizer
