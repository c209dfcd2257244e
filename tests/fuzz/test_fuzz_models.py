"""Files of models and tokenizers, cut, damaged or of other kinds: one sentence, or a model that computes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from mangled import OTHERS, mangled, time_limit

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig

TEXTS = ["a red bus", "two dogs é", "a cat on a red chair"]


@pytest.fixture(scope="module")
def text_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 3, vocab_size=60)


@pytest.fixture(scope="module")
def models(text_tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small model in every format."""
    torch.manual_seed(0)
    config = BlipConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, num_heads=2),
        text=TextConfig(vocab_size=text_tokenizer.vocab_size, width=16, depth=1, num_heads=2, inner_width=16,
                        max_positions=12, memory_width=16),
        embed_dim=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models")
    stored = StoredModel(Blip(config).eval(), text_tokenizer)
    convert_model(stored, folder / "own", to="openblip")
    convert_model(stored, folder / "theirs", to="transformers", part="caption")
    convert_model(stored, folder / "original.pth", to="blip")
    loaded = torch.load(folder / "original.pth")  # and as torch before 1.6 wrote it
    torch.save(loaded, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder


def check_words(tokenizer: TextTokenizer) -> None:
    batch = tokenizer.encode(TEXTS)
    assert batch.input_ids.shape[0] == len(TEXTS)
    assert all(isinstance(text, str) for text in tokenizer.decode_batch(batch.input_ids))


def check(source: Path, text_tokenizer: TextTokenizer | None = None) -> None:
    """Open a model and use it."""
    stored = open_model(source, tokenizer=text_tokenizer)
    model = stored.blip
    height, width = model.config.vision.pixels
    with torch.no_grad():
        memory = model.remember(model.encode_image(torch.zeros(1, 3, height, width)))
        ids = stored.tokenizer.encode([TEXTS[0]], first="dec").input_ids
        assert model.text_decoder is not None
        assert torch.as_tensor(model.text_decoder(ids, memory=memory)).shape[0] == 1


def attempts(path: Path, contents: list[bytes], use: object, *, names: tuple[str, ...]) -> tuple[int, int]:
    """Put each content in the file's place and use it; how many were reported, how many were fine."""
    messages, fine = list[str](), 0
    for content in contents:
        path.unlink()  # what was mapped from it stays whole
        path.write_bytes(content)
        with time_limit(content[:60]):
            try:
                use()  # type: ignore[operator]
                fine += 1
            except UserError as error:
                messages.append(str(error))
    assert [text for text in messages if "\n" in text or not any(name in text for name in names)] == []
    return len(messages), fine


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "file", "count", "head"),
    [
        ("own", "config.json", 120, None),
        ("own", "tokenizer.json", 48, None),
        ("own", "tokenizer_config.json", 24, None),
        ("own", "model.safetensors", 48, 3000),
        ("theirs", "config.json", 120, None),
        ("theirs", "tokenizer.json", 40, None),
        ("theirs", "model.safetensors", 40, 3000),
    ],
)
def test_folders(models: Path, tmp_path: Path, model: str, file: str, count: int, head: int | None) -> None:
    folder = tmp_path / model
    shutil.copytree(models / model, folder)
    check(folder)
    path = folder / file
    data = path.read_bytes()
    contents = [*mangled(data, count, seed=file, head=head), *OTHERS.values()]
    if head is not None:
        contents += mangled(data, count // 2, seed=file)
    messages, fine = attempts(path, contents, lambda: check(folder), names=(str(folder), file, model))
    assert messages
    assert fine
    path.unlink()
    if file != "tokenizer_config.json":
        with pytest.raises(UserError):
            check(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["original.pth", "old.pth"])
def test_checkpoints(models: Path, tmp_path: Path, text_tokenizer: TextTokenizer, file: str) -> None:
    data = (models / file).read_bytes()
    path = tmp_path / file
    path.write_bytes(data)
    check(path, text_tokenizer)
    contents = [*mangled(data, 60, seed=file), *mangled(data, 60, seed=file, head=4000), *OTHERS.values()]
    if file == "original.pth":  # a zip archive has its directory at its end
        contents += [data[:-3000] + end for end in mangled(data[-3000:], 60, seed=file)]
    messages, _ = attempts(path, contents, lambda: check(path, text_tokenizer), names=(file,))
    assert messages > len(OTHERS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json", "added_tokens.json", "tokenizer_config.json"])
def test_tokenizers(text_tokenizer: TextTokenizer, tmp_path: Path, file: str) -> None:
    text_tokenizer.save(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    if file != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
        pieces = sorted(text_tokenizer._tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")
        (tmp_path / "added_tokens.json").write_text('{"[DEC]": 5, "[ENC]": 6}')
    path = tmp_path / file
    whole = path.read_bytes()
    contents = [*mangled(whole, 160, seed=file), *OTHERS.values()]
    messages, fine = attempts(
        path, contents, lambda: check_words(TextTokenizer.load(tmp_path)), names=(str(tmp_path), file)
    )
    assert messages
    assert fine
