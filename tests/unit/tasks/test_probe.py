"""The linear probe: features of both families, the minimum that is found, the choice of l2, the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import small
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.data.source_config import parse_spec
from openblip.data.transforms import evaluation_transform
from openblip.tasks.probe import Labelled, PooledTower, fit, hold_out, labelled, probe, read_features

sys.path.append(str(Path(__file__).resolve().parents[1] / "blip2"))
import small_blip2

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}


def write(folder: Path, count: int, seed: int) -> Path:
    """Plain images of a colour, a little lighter or darker each, in the folder of the colour."""
    generator = torch.Generator().manual_seed(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shift = int(torch.randint(-20, 20, (1,), generator=generator))
            Image.new("RGB", (40, 32), tuple(c + shift for c in colour)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    write(folder / "train", 6, 0)
    write(folder / "test", 3, 1)
    return folder


@pytest.mark.parametrize("family", ["blip", "blip2"])
@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
def test_features_are_those_of_the_model(family: str, pool: str, data: Path, tmp_path: Path) -> None:
    model = small.model() if family == "blip" else small_blip2.model()
    source = labelled(parse_spec(str(data / "test")))
    found = read_features(source, PooledTower(model, pool), tmp_path, num_workers=0)  # type: ignore[arg-type]
    assert found.labels == [Path(key).parent.name for key in found.keys]
    transform = evaluation_transform(small.PIXELS)
    for row, key in enumerate(found.keys):
        pixels = transform(Image.open(data / "test" / key), None)  # type: ignore[arg-type]
        with torch.no_grad():
            tokens = model.encode_pixels(pixels[None])[0]
        first = tokens[0]
        rest = tokens[1 if family == "blip" else model.vision.first :].mean(0)
        wanted = {"cls": first, "mean": rest, "both": torch.cat((first, rest))}[pool]
        # other batches sum in another order
        torch.testing.assert_close(found.features[row], wanted, rtol=1e-4, atol=1e-5)


def test_an_image_has_one_class(data: Path, tmp_path: Path) -> None:
    table = data / "a.jsonl"
    table.write_text(json.dumps({"image": "test/red/0.png", "text": ["a cat", "a dog"]}) + "\n")
    tower = PooledTower(small.model(), "cls")
    with pytest.raises(UserError, match="has 2 texts; an image to probe with has exactly one, its class"):
        read_features(labelled(parse_spec(str(table))), tower, tmp_path, num_workers=0)


def clusters(count: int, seed: int, *, spread: float = 1.0) -> Labelled:
    """Two overlapping clouds of points in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    features = spread * torch.randn(2 * count, 4, generator=generator)
    features[count:, 0] += 2.0
    return Labelled(features, ["a"] * count + ["b"] * count, [f"{seed}-{n}" for n in range(2 * count)])


def test_what_is_found_is_the_minimum() -> None:
    images, targets = clusters(40, 0), torch.tensor([0] * 40 + [1] * 40)
    layer = fit(images.features, targets, 2, l2=0.01)
    weight, bias = layer.weight.clone().requires_grad_(), layer.bias.clone().requires_grad_()
    inputs = (images.features - layer.mean) / layer.deviation
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(4))
    loss = F.cross_entropy(F.linear(inputs, weight, bias), targets) + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1e-4  # of a loss of order 1
    stronger = fit(images.features, targets, 2, l2=10.0)
    assert stronger.weight.norm() < 0.2 * layer.weight.norm()
    again = fit(images.features, targets, 2, l2=0.01, start=stronger)
    torch.testing.assert_close(again.weight, layer.weight, rtol=1e-2, atol=1e-3)


def test_the_strength_is_chosen_on_what_is_held_out() -> None:
    train, test = clusters(60, 1), clusters(200, 2)
    layer, classes, figures = probe(train, test, strengths=(1e-3, 1e3), share=0.2)
    assert classes == ["a", "b"]
    assert [row["l2"] for row in figures["sweep"]] == [1e-3, 1e3]
    best = max(figures["sweep"], key=lambda row: (row["held_out_top1"], row["l2"]))
    assert figures["l2"] == best["l2"]
    assert figures["top1"] > 0.75  # the best line is right for 84%
    assert "top5" not in figures
    assert (figures["train_images"], figures["held_out_images"], figures["test_images"]) == (120, 24, 400)
    assert figures["trained_parameters"] == 2 * 4 + 2
    again, _, same = probe(train, test, strengths=(1e-3, 1e3), share=0.2)
    assert torch.equal(again.weight, layer.weight)
    assert same == figures


def test_each_class_gives_its_share_whatever_the_order() -> None:
    images = clusters(10, 3)
    kept, held = hold_out(images, 0.3)
    assert sorted(kept + held) == list(range(20))
    assert [sum(images.labels[row] == name for row in held) for name in ("a", "b")] == [3, 3]
    other = images.select(list(range(19, -1, -1)))
    names = {images.keys[row] for row in held}
    assert {other.keys[row] for row in hold_out(other, 0.3)[1]} == names
    alone = Labelled(torch.zeros(3, 1), ["a", "b", "b"], ["1", "2", "3"])
    kept, held = hold_out(alone, 0.9)
    assert 0 in kept
    assert len(held) == 1


def test_what_is_refused() -> None:
    images = clusters(3, 4)
    with pytest.raises(UserError, match='no training image is of the class "c"'):
        probe(images, Labelled(torch.zeros(1, 4), ["c"], ["x"]))
    with pytest.raises(UserError, match="the training images are of 1"):
        probe(images.select([0, 1]), images)
    with pytest.raises(UserError, match="no class has two training images"):
        probe(images.select([0, 5]), images)
    with pytest.raises(UserError, match="strengths that are not negative"):
        probe(images, images, strengths=(-1.0,))


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    save_model(model, StoredModel(small.model(), small.tokenizer()))
    out = tmp_path / "out"
    words = ["probe", str(data / "train"), "--test", str(data / "test"), "--model", str(model), "--out", str(out)]
    words += ["--num-workers", "0", "--device", "cpu"]
    assert main([*words, "--l2", "1e-4,1e-2"]) == 0
    assert "top-1 100.0% over 9 images" in capsys.readouterr().err  # three plain colours
    told = json.loads((out / "probe.json").read_text())
    assert told["classes"] == ["blue", "green", "red"]
    assert told["top1"] == told["mean_per_class"] == 1.0
    assert told["frozen_parameters"] > told["trained_parameters"] == 3 * told_width(out) + 3
    shards = {path: path.stat().st_mtime_ns for path in out.glob("features-*/*.safetensors")}
    assert len(shards) == 2
    assert main([*words, "--l2", "1e-2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in shards} == shards, "features are computed once"
    capsys.readouterr()
    assert main([*words, "--pool", "mean"]) == 2
    assert "holds other features: its pool is cls, not mean" in capsys.readouterr().err
    assert main([*words, "--l2", "much"]) == 2
    assert '--l2 takes numbers with commas, as "1e-4,1e-2", not much' in capsys.readouterr().err
    assert main(["probe", str(data / "train"), *words[1:]]) == 2
    assert "one folder, dataset or table" in capsys.readouterr().err
    elsewhere = [*words[:-6], "--out", str(tmp_path / "refused"), *words[-4:]]
    for option, value in (("--l2", "1,-1"), ("--l2", "nan"), ("--held-out", "1.5")):
        assert main([*elsewhere, option, value]) == 2
        assert "strengths that are not negative, and a share held out between 0 and 1" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists(), "before any feature is computed"


def told_width(out: Path) -> int:
    return load_file(out / "probe.safetensors")["weight"].shape[1]
