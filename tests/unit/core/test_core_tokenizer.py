"""Texts to ids and back: BERT's vocabulary, one trained in any script, files, padding and special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer

VOCAB = Path(__file__).resolve().parents[2] / "golden" / "blip" / "tokenizer" / "vocab.txt"

SCRIPTS = {
    "english": ["a red car stands on the street", "two dogs, one cat."],
    "german": ["ein grüner frosch für die größe", "über den straßen"],
    "russian": ["красная машина стоит на улице", "чёрный ёжик и белая кошка"],
    "arabic": ["سيارة حمراء في الشارع", "قِطَّةٌ سوداء"],
    "hindi": ["सड़क पर लाल गाड़ी", "दो कुत्ते और एक बिल्ली"],
    "chinese": ["街上有一辆红色的汽车", "两只狗和一只猫"],
    "korean": ["거리에 빨간 자동차가 있다", "개 두 마리"],
    "vietnamese": ["một chiếc xe màu đỏ trên đường", "hai con chó"],
}


@pytest.fixture(scope="module")
def bert() -> TextTokenizer:
    return TextTokenizer.from_vocab(VOCAB)


def test_the_two_tokens_follow_the_vocabulary(bert: TextTokenizer) -> None:
    pieces = VOCAB.read_text(encoding="utf-8").splitlines()
    own = len(set(pieces))
    assert (bert.dec_id, bert.enc_id) == (own, own + 1), "[DEC] first, as the published checkpoints have it"
    assert bert.vocab_size == own + 2
    assert bert.tokens([bert.cls_id, bert.sep_id, bert.pad_id]) == ["[CLS]", "[SEP]", "[PAD]"]
    assert len({*bert.special_ids}) == 5


@pytest.mark.parametrize("first", ["cls", "enc", "dec"])
def test_encode_begins_as_asked_ends_and_pads_to_the_longest(bert: TextTokenizer, first: str) -> None:
    batch = bert.encode(["a", "a a a", ""], first=first)  # type: ignore[arg-type]
    start = {"cls": bert.cls_id, "enc": bert.enc_id, "dec": bert.dec_id}[first]
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask.dtype == torch.bool
    assert batch.input_ids.shape == (3, 5)
    assert batch.attention_mask.sum(1).tolist() == [3, 5, 2]
    assert (batch.input_ids[:, 0] == start).all()
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        assert ids[mask][-1] == bert.sep_id
        assert (ids[~mask] == bert.pad_id).all()
    assert len(batch) == 3


def test_long_texts_are_cut_and_still_end(bert: TextTokenizer) -> None:
    batch = bert.encode(["a a a a a a a a", "a"], max_length=5)
    assert batch.input_ids.shape == (2, 5)
    assert batch.input_ids[0, -1] == bert.sep_id
    assert bert.encode(["a"], end=False).input_ids.shape == (1, 2)
    assert bert.encode(["a a a"], max_length=2, end=False).input_ids.shape == (1, 2)


def test_a_prompt_is_joined_by_one_blank(bert: TextTokenizer) -> None:
    for prompt in ("a red ", "a red", "a red  "):
        batch, start = bert.encode_after(prompt, ["bus", "dog on a road"])
        assert bert.tokens(batch.input_ids[0])[:5] == ["[DEC]", "a", "red", "bus", "[SEP]"]
        assert bert.prompts([prompt]).input_ids.tolist() == [batch.input_ids[0, :start].tolist()]
    for prompt in ("", " "):
        batch, start = bert.encode_after(prompt, ["bus"], first="cls")
        assert (bert.tokens(batch.input_ids[0]), start) == (["[CLS]", "bus", "[SEP]"], 1)


def test_encoding_has_no_state(bert: TextTokenizer) -> None:
    alone = bert.encode(["a a"]).input_ids
    bert.encode(["a a a a a a a a a"], max_length=3)
    assert bert.encode(["a a"]).input_ids.equal(alone)


def test_one_text_instead_of_a_list_is_reported(bert: TextTokenizer) -> None:
    with pytest.raises(UserError, match="takes a list of texts"):
        bert.encode("a dog")


def test_no_text_is_an_empty_batch(bert: TextTokenizer) -> None:
    assert bert.encode([]).input_ids.shape == (0, 0)


def test_decode_drops_specials_and_what_follows_the_end(bert: TextTokenizer) -> None:
    ids = bert.encode(["a"], first="dec").input_ids[0].tolist()
    text = bert.decode(ids)
    assert text == "a"
    assert bert.decode([*ids, *ids[1:]]) == "a"
    assert bert.decode_batch(torch.tensor([ids, ids])) == ["a", "a"]
    assert bert.decode([]) == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_trained_vocabulary_gives_its_texts_back(script: str, tmp_path: Path) -> None:
    captions = SCRIPTS[script]
    tokenizer = TextTokenizer.train(captions, vocab_size=400)
    assert tokenizer.vocab_size <= 400
    batch = tokenizer.encode(captions)
    assert tokenizer.decode_batch(batch.input_ids) == captions
    tokenizer.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.encode(captions, first="enc").input_ids.equal(tokenizer.encode(captions, first="enc").input_ids)
    assert (loaded.vocab_size, loaded.special_ids) == (tokenizer.vocab_size, tokenizer.special_ids)
    assert (loaded.dec_id, loaded.enc_id) == (tokenizer.dec_id, tokenizer.enc_id)


def test_one_vocabulary_for_all_scripts() -> None:
    captions = [caption for script in SCRIPTS.values() for caption in script]
    tokenizer = TextTokenizer.train(captions, vocab_size=1000)
    assert tokenizer.decode_batch(tokenizer.encode(captions).input_ids) == captions


def test_case_is_kept_when_asked() -> None:
    captions = ["Ein Haus in Köln", "ein haus"]
    tokenizer = TextTokenizer.train(captions, vocab_size=200, lowercase=False)
    assert tokenizer.decode_batch(tokenizer.encode(captions).input_ids) == captions


def test_training_is_the_same_every_time() -> None:
    """The trainer's own order changes within one process: of twenty vocabularies no two were the same."""
    captions = [caption for script in SCRIPTS.values() for caption in script]
    vocabularies = []
    for _ in range(20):
        tokenizer = TextTokenizer.train(iter(captions), vocab_size=300)
        vocabularies.append(tokenizer.tokens(range(tokenizer.vocab_size)))
    assert all(other == vocabularies[0] for other in vocabularies)
    assert len(set(vocabularies[0])) == 300


def test_more_letters_than_room_leaves_the_rarest_out() -> None:
    captions = [chr(0x4E00 + i) * 2 for i in range(50)] + [chr(0x4E00 + i) for i in range(10)]
    tokenizer = TextTokenizer.train(captions, vocab_size=27)
    assert tokenizer.vocab_size == 17, "7 special tokens and 10 letters: half of what is left"
    assert tokenizer.decode(tokenizer.encode([chr(0x4E00)]).input_ids[0]) == chr(0x4E00)
    unknown = tokenizer.encode([chr(0x4E00 + 49)]).input_ids[0, 1:-1]
    assert tokenizer.tokens(unknown) == ["[UNK]"]


def test_bert_vocabulary_survives_saving(bert: TextTokenizer, tmp_path: Path) -> None:
    bert.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    texts = ["a quick look, 123!", "[DEC] is no word"]
    assert loaded.encode(texts).input_ids.equal(bert.encode(texts).input_ids)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [bert.dec_id, bert.enc_id]
    assert (
        theirs(texts, add_special_tokens=False)["input_ids"][0]
        == bert.encode(texts[:1]).input_ids[0, 1:-1].tolist()
    )


def test_a_folder_with_a_vocabulary_alone(bert: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(VOCAB.read_text(encoding="utf-8"), encoding="utf-8")
    assert TextTokenizer.load(tmp_path).vocab_size == bert.vocab_size


def test_mistakes_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.txt"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(UserError, match="no vocabulary file"):
        TextTokenizer.from_vocab(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("[PAD]\nhello\n")
    with pytest.raises(UserError, match=r"has no \[CLS\] token"):
        TextTokenizer.from_vocab(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="no room for words"):
        TextTokenizer.train(["a"], vocab_size=7)
    with pytest.raises(UserError, match="no text to train"):
        TextTokenizer.train([], vocab_size=70)


SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIALS, "\u2028", "\u2029", "\x85", "\x0c", "Cat", "cat", "été", "ete", "中", "##国", "国"]
TEXTS = ["Cat cat", "Été été", "中国", "a \u2028 cat", "CAT"]


def _vocabulary(folder: Path, pieces: list[str], end: str = "\n", **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes("".join(piece + end for piece in pieces).encode())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_ids_are_the_numbers_of_lines(end: str, mark: str, tmp_path: Path) -> None:
    """Chinese vocabularies hold U+2028, which ends no line."""
    folder = _vocabulary(tmp_path, [mark + PIECES[0], *PIECES[1:]], end)
    for words in (TextTokenizer.load(folder), TextTokenizer.from_vocab(folder / "vocab.txt")):
        assert words.tokens(range(len(PIECES))) == PIECES
        assert (words.dec_id, words.enc_id, words.vocab_size) == (len(PIECES), len(PIECES) + 1, len(PIECES) + 2)
    words.save(tmp_path / "saved")
    assert TextTokenizer.load(tmp_path / "saved").tokens(range(len(PIECES))) == PIECES


def test_a_piece_that_stands_twice_is_as_in_transformers(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = _vocabulary(tmp_path, [*PIECES, "cat", "dog"])
    ours, theirs = TextTokenizer.load(folder), BertTokenizer.from_pretrained(folder)
    assert ours.encode(["cat dog"]).input_ids[0].tolist() == theirs("cat dog")["input_ids"]
    assert ours.encode(["cat dog"]).input_ids[0, 1:3].tolist() == [len(PIECES), len(PIECES) + 1]


@pytest.mark.parametrize("lower", [None, True, False])
@pytest.mark.parametrize("accents", [None, True, False])
@pytest.mark.parametrize("chinese", [None, True, False])
def test_the_settings_beside_a_vocabulary_count(
    lower: bool | None, accents: bool | None, chinese: bool | None, tmp_path: Path
) -> None:
    from transformers import BertTokenizer

    given = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    settings = {name: value for name, value in given.items() if value is not None}
    folder = _vocabulary(tmp_path / "a", PIECES, tokenizer_class="BertTokenizer", **settings)
    ours, theirs = TextTokenizer.load(folder), BertTokenizer.from_pretrained(folder)
    for text in TEXTS:
        row = ours.encode([text]).input_ids[0].tolist()
        assert row == theirs(text)["input_ids"], text
    ours.save(tmp_path / "saved")
    again = TextTokenizer.load(tmp_path / "saved")
    assert again.encode(TEXTS).input_ids.equal(ours.encode(TEXTS).input_ids)


def test_tokens_that_were_added_keep_their_ids(tmp_path: Path) -> None:
    folder = _vocabulary(tmp_path, PIECES, cls_token="[CLS]")
    count = len(PIECES)
    (folder / "added_tokens.json").write_text(json.dumps({"[ENC]": count + 1, "[DEC]": count, "[NEW]": count + 2}))
    tokenizer = TextTokenizer.load(folder)
    assert (tokenizer.dec_id, tokenizer.enc_id, tokenizer.vocab_size) == (count, count + 1, count + 3)
    (folder / "added_tokens.json").write_text(json.dumps({"[ENC]": count + 5}))
    with pytest.raises(UserError, match=r'"\[ENC\]" would be 16, not 21'):
        TextTokenizer.load(folder)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 1\n",
            "git-lfs pointer: run `git lfs pull`",
        ),
        (b"<!doctype html><html></html>", "HTML page"),
        (b"", "is empty"),
        (b"\x80\x04\x95", "Python pickle"),
        (b"PK\x03\x04\x14\0", "zip archive"),
    ],
)
def test_files_that_are_no_tokenizer_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder = _vocabulary(tmp_path, PIECES)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        TextTokenizer.load(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_json_cut_short_is_reported(bert: TextTokenizer, tmp_path: Path) -> None:
    bert.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "tokenizer.json").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer that can be read: "):
            TextTokenizer.load(tmp_path)


def test_a_file_may_stand_for_its_folder(tmp_path: Path) -> None:
    folder = _vocabulary(tmp_path, PIECES, do_lower_case=False)
    assert TextTokenizer.load(folder / "vocab.txt").encode(["Cat"]).input_ids[0, 1] == PIECES.index("Cat")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is no tokenizer; give a folder"):
        TextTokenizer.load(folder / "tokenizer_config.json")


@pytest.mark.parametrize("name", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("value", ["false", 0, 1, []])
def test_a_setting_that_is_neither_true_nor_false_is_reported(tmp_path: Path, name: str, value: Any) -> None:
    folder = _vocabulary(tmp_path, PIECES, **{name: value})
    with pytest.raises(UserError, match=f"{name} in .*tokenizer_config.json must be true or false, not "):
        TextTokenizer.load(folder)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^there is no folder {tmp_path / 'nowhere'}$"):
        TextTokenizer.load(tmp_path / "nowhere")


def test_apostrophes_join_words_as_in_the_original() -> None:
    """As in "man's": with blanks around it a caption has words that its references have not."""
    texts = ["a man's hat", "it can't rain", "l'eau", "the dogs, and a bird."]
    words = TextTokenizer.train(texts * 4, vocab_size=120)
    assert words.decode_batch(words.encode(texts).input_ids) == texts
