"""The site is built without a broken link, and the Python of the README runs; both languages are alike."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config
from openblip.models.vqa import BlipVqa, VqaConfig

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
CHINESE = (REPO / "README.zh-CN.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
TEXTS = ("a yellow arrow and a pink circle", "a white diamond", "a green square", "a blue arrow, a red star")
QUESTIONS = ("what color is the arrow?", "what color is the star?")


def test_both_languages_have_the_same_blocks_and_links() -> None:
    assert FENCED.findall(README) == FENCED.findall(CHINESE)
    links = [re.findall(r"\]\(([^)#]+)", text) for text in (README, CHINESE)]
    assert sorted(set(links[0]) - {"README.zh-CN.md"}) == sorted(set(links[1]) - {"README.md"})
    missing = [link for link in links[0] if "://" not in link and not (REPO / link).exists()]
    assert not missing


def test_the_examples_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With random models under the names of the demo: each prints as many lines and percentages as shown."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train([*TEXTS, *QUESTIONS] * 3, vocab_size=100)
    sizes = blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=32)
    for name in ("captioner", "matcher"):
        save_model(tmp_path / "runs" / "demo" / name / "model", StoredModel(Blip(sizes), tokenizer))
    answerer = BlipVqa(VqaConfig(vision=sizes.vision, text=sizes.text))
    save_model(tmp_path / "runs" / "demo" / "blip2" / "stage2-decoder" / "model", StoredModel(answerer, tokenizer))
    (tmp_path / "photos" / "images").mkdir(parents=True)
    for number in (1, 2, 11):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / f"photos/images/test-0-{number:08d}.png")
    monkeypatch.chdir(tmp_path)
    blocks = FENCED.findall(README)
    examples = [(code, blocks[i + 1][1]) for i, (language, code) in enumerate(blocks) if language == "python"]
    assert len(examples) == 5
    names: dict[str, object] = {}
    for number, (code, shown) in enumerate(examples, 1):
        exec(compile(code, f"README.md, example {number}", "exec"), names)
        printed = capsys.readouterr().out
        assert len(printed.splitlines()) == len(shown.splitlines())
        assert printed.count("%") == shown.count("%")


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    assert shutil.which("mkdocs", path=str(Path(sys.executable).parent))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api" / "using" / "index.html").read_text(encoding="utf-8")
    assert "openblip.tasks.predictor.Predictor.caption" in page
