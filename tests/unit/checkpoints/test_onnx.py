"""ONNX graphs of BLIP, run by onnxruntime: the same numbers as torch's, the same caption, one file of weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx_small import HEADS, LAYERS, SIDE, TEXTS, WIDTH, Arrays, layers, pixels, run_graph, same, words
from PIL import Image

import openblip
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.cli.entry import main
from openblip.core import errors
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import KVCache
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.stepper import DecoderStepper


def blip(depth: int = LAYERS, **changes: Any) -> StoredModel:
    """A model whose weights are wide enough that every output depends on all that is read.

    The time of an export grows with the layers: the tower, whose layers no graph names, has one.
    """
    tokenizer = TextTokenizer.train(list(TEXTS) * 3, vocab_size=90)
    config = BlipConfig(
        vision=VisionConfig(image_size=SIDE, patch_size=8, width=WIDTH, depth=1, num_heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size, width=WIDTH, depth=depth, num_heads=HEADS, inner_width=128,
            max_positions=40, memory_width=WIDTH,
        ),
        embed_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Blip(replace(config, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    return StoredModel(model.eval(), tokenizer, {"prompt": "a red "})


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    return blip()


@pytest.fixture(scope="module")
def folder(make_once: Callable[..., Path], stored: StoredModel) -> Path:
    return make_once("onnx", lambda place: convert_model(stored, place / "graphs", to="onnx")) / "graphs"


@pytest.fixture
def run(folder: Path) -> Callable[[str, Arrays], Arrays]:
    """Run the graph of a name on tensors by name."""

    return partial(run_graph, folder)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 5])
@torch.no_grad()
def test_images_are_seen_the_same(count: int, stored: StoredModel, run: Any) -> None:
    embeds = stored.model.encode_pixels(pixels(count))
    found = run("image", {"pixels": pixels(count)})
    same(found.pop("image_features"), stored.model.image_features(embeds))
    memory = layers("memory", stored.model.remember(embeds))
    assert list(found) == list(memory)
    for name, expected in memory.items():
        assert found[name].shape == (count, HEADS, 25, WIDTH // HEADS)
        same(found[name], expected, name)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "rows", "length"), [(1, 1, 1), (1, 3, 7), (2, 2, 5), (2, 6, 2), (3, 3, 40)])
@torch.no_grad()
def test_texts_are_embedded_and_matched_the_same(
    images: int, rows: int, length: int, stored: StoredModel, run: Any
) -> None:
    model = stored.model
    memory = model.remember(model.encode_pixels(pixels(images)))
    for name, first in (("text", stored.tokenizer.cls_id), ("match", stored.tokenizer.enc_id)):
        ids, mask = words(rows, length, first)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        if name == "text":
            same(run(name, inputs)["text_features"], model.text_features(ids, mask))
        else:
            found = run(name, inputs | layers("memory", memory))["itm_logits"]
            same(found, model.match(ids, mask, memory))


@pytest.mark.slow
@pytest.mark.parametrize(("images", "rows"), [(1, 1), (1, 3), (2, 2), (2, 4)])
@pytest.mark.parametrize("length", [1, 5])
@torch.no_grad()
def test_the_decoder_steps_the_same(images: int, rows: int, length: int, stored: StoredModel, run: Any) -> None:
    """A prompt, padded in every second row, then one token, then two at once."""
    model = stored.model
    memory = model.remember(model.encode_pixels(pixels(images)))
    cache = KVCache()
    past = {name: torch.zeros(rows, HEADS, 0, WIDTH // HEADS) for name in layers("past", memory)}
    seen = torch.zeros(rows, 0, dtype=torch.bool)
    for number, new in enumerate((length, 1, 2)):
        ids, mask = words(rows, new, stored.tokenizer.dec_id)
        if number:
            mask = torch.ones_like(mask)
        seen = torch.cat((seen, mask), dim=1)
        expected = model.decoder(ids, mask, memory=memory, cache=cache)
        inputs = {"input_ids": ids, "attention_mask": seen.long(), **layers("memory", memory), **past}
        found = run("decoder", inputs)
        same(torch.from_numpy(found.pop("logits"))[mask], expected[mask])
        past = {name.replace("present", "past"): value for name, value in found.items()}
        for name, value in layers("past", cache).items():
            assert past[name].shape == value.shape
            real = seen[:, None, :, None].expand(value.shape)
            same(torch.from_numpy(past[name])[real], value[real], name)


@pytest.mark.slow
@torch.no_grad()
def test_the_program_in_its_readme_writes_our_caption(
    folder: Path, stored: StoredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(pixels(1)[0].permute(1, 2, 0).numpy())
    image.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), flags=re.S | re.M)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)).replace("photo.jpg", "photo.png"), names)

    model, tokenizer = stored.model, stored.tokenizer
    embeds = model.encode_pixels(pixels(1))
    memory = model.remember(embeds)
    prompt = tokenizer.encode(["a red "], first="dec", end=False)
    config = DecodeConfig(num_beams=1, max_new_tokens=20)
    decoded = decode(
        DecoderStepper(model.decoder, memory), prompt.input_ids, None, config,
        eos_ids=tokenizer.sep_id, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    ours = decoded.ids[0, : decoded.lengths[0]].tolist()
    new = names["written"][len(names["prompt"]) :]
    assert new == [token for token in ours if token != tokenizer.sep_id]
    assert len(new) > 2

    texts = ["a red bus", "two dogs"]
    alone, read = (tokenizer.encode(texts, first=first) for first in ("cls", "enc"))
    features = model.text_features(alone.input_ids, alone.attention_mask)
    same(names["similarities"], model.image_features(embeds) @ features.T)
    same(names["matched"], model.match(read.input_ids, read.attention_mask, memory).softmax(1)[:, 1])


@pytest.mark.slow
def test_the_folder_tells_what_it_holds(folder: Path, stored: StoredModel) -> None:
    config = json.loads((folder / "config.json").read_text())
    files = {f"{name}.onnx" for name in ("image", "text", "match", "decoder")}
    rest = {"weights.bin", "config.json", "README.md", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == files | rest
    for name, told in config["graphs"].items():
        onnx.checker.check_model(folder / f"{name}.onnx")
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        for way, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert {port.name: port.shape for port in ports} == {n: port["shape"] for n, port in told[way].items()}
    readme = (folder / "README.md").read_text()
    assert "| decoder | reads | `past.LAYER.key`, `.value` | float32 | rows, 2, past, 32 |" in readme
    assert config["tokens"]["dec"] == stored.tokenizer.dec_id
    assert TextTokenizer.load(folder).vocab_size == stored.tokenizer.vocab_size
    with pytest.raises(UserError, match="graphs holds ONNX graphs"):
        open_model(folder)


@pytest.mark.slow
def test_a_shared_weight_is_stored_once(folder: Path, stored: StoredModel) -> None:
    """Encoder and decoder share most of their weights, so the file is hardly larger than the model's own."""
    own = sum(p.numel() * p.element_size() for p in stored.model.parameters())
    size = (folder / "weights.bin").stat().st_size
    # Each tensor begins at a page.
    assert 0.9 * own < size < own + 4096 * sum(1 for _ in stored.model.parameters())
    graphs = b"".join((folder / f"{name}.onnx").read_bytes() for name in ("image", "text", "match", "decoder"))
    assert len(graphs) < own / 2
    assert str(Path(openblip.__file__).parent).encode() not in graphs, "no path of the machine"


@pytest.mark.slow
def test_a_captioner_has_what_it_needs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One layer: which graphs are written does not depend on them.
    save_model(tmp_path / "model", blip(depth=1))
    folder = tmp_path / "graphs"
    assert main(["convert", str(tmp_path / "model"), str(folder), "--to", "onnx", "--part", "caption"]) == 0
    assert {path.stem for path in folder.glob("*.onnx")} == {"image", "decoder"}
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), flags=re.S | re.M)
    Image.new("RGB", (50, 40), (90, 30, 200)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)), names)
    assert names["written"]
    assert "matched" not in names


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = blip()
    with torch.no_grad():
        broken.model.vision_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r'"vision_proj.weight" of the model holds NaN or infinity'):
        convert_model(broken, tmp_path / "nan", to="onnx")
    sizes = broken.model.config
    nlvr = StoredModel(BlipNlvr(NlvrConfig(vision=sizes.vision, text=sizes.text)), broken.tokenizer)
    with pytest.raises(UserError, match=r"of BLIP-2 models of stage 1; this is a BLIP NLVR2 model"):
        convert_model(nlvr, tmp_path / "nlvr", to="onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(errors.MissingExtra, match=r'pip install "openblip\[onnx\]"'):
        convert_model(blip(), tmp_path / "missing", to="onnx")
    assert not list(tmp_path.iterdir())
