"""The page: nothing from outside, every text escaped, numbers spelled right; the JSON tells the same."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from openblip.core.errors import UserError
from openblip.report import (
    Card,
    CardText,
    Cell,
    Chart,
    Charts,
    Column,
    Details,
    Fact,
    Gallery,
    Headline,
    Histogram,
    Report,
    Result,
    Section,
    Series,
    Stage,
    Stages,
    Strip,
    Strips,
    Table,
    Text,
    from_json,
    page_image,
    read_report,
    render,
    to_json,
    write_report,
)
from openblip.report.content import Block
from openblip.report.curves import NUM_COLORS
from openblip.report.page import environment

EVIL = "'\"><script>&"
"""short enough to be cut nowhere"""


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text += data


def image(seed: int = 0, size: tuple[int, int] = (64, 64)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


def full_report(text: str = "a red circle") -> Report:
    """A report with one of everything, `text` wherever a text can be."""
    shown = page_image(image(), alt=text)
    blocks: list[Block] = [
        Charts(
            charts=[
                Chart(
                    title=text,
                    series=[
                        Series(name=text, x=[1, 2, 3], y=[0.1, None, 0.3], spread=[0.01, 0.02, 0.01]),
                        Series(
                            name="b",
                            x=[float(i) for i in range(50)],
                            y=[1 / (i + 1) for i in range(50)],
                            role="raw",
                        ),
                    ],
                    unit="fraction",
                    reference=0.05,
                    reference_name=text,
                    target=0.5,
                    explanation=text,
                ),
                Histogram(title=text, edges=[0, 0.5, 1], groups={text: [3, 4], "b": [0, 1]}, threshold=0.5),
            ]
        ),
        Table(
            columns=[Column(name=text), Column(name="n", unit="fraction", better="higher", reference=0.5)],
            rows=[[text, Cell(value=0.5, spread=0.012, note=text)], ["other", 0.75], ["none", None]],
            title=text,
            note=text,
        ),
        Gallery(
            cards=[
                Card(
                    image=shown,
                    texts=[
                        CardText(text=text, label=text, verdict="true", reason=text, score=0.3, score_name=text)
                    ],
                    title=text,
                    truth=[text],
                    facts=[Fact(name=text, value=text), Fact(name="loss", value=1.25)],
                ),
                Card(image=None, texts=[CardText(text=text, verdict="false", rank=3, right=True)]),
            ],
            title=text,
            note=text,
        ),
        Strips(
            strips=[
                Strip(query=text, results=[Result(image=shown, text=text, score=0.9, right=True)], right_rank=1),
                Strip(
                    query_image=shown,
                    results=[Result(text=text, score=0.1), Result(text=text, right=True)],
                    note=text,
                ),
            ],
            title=text,
            note=text,
        ),
        Stages(stages=[Stage(name=text, seconds=3.5, note=text), Stage(name="b", seconds=0)], title=text),
        Text(paragraphs=[text], tone="warning"),
        Details(title=text, facts=[Fact(name=text, value=text)], lines=[text, text], note=text),
    ]
    return Report(
        title=text,
        subtitle=text,
        summary=[text],
        headlines=[
            Headline(label=text, value=0.832, reference=0.005, reference_name=text, target=0.8, explanation=text),
            Headline(label="nothing", value=None),
        ],
        sections=[Section(title=text, intro=text, blocks=blocks), Section(title=text, tone="wrong")],
        made=text,
    )


def test_every_text_is_escaped() -> None:
    page = Page(render(full_report(EVIL)))
    assert not page.open, f"never closed: {page.open}"
    assert "script" not in {tag for tag, _ in page.tags}
    # As often as a report without harm says it, so that none was lost or became markup.
    count = Page(render(full_report("a red circle"))).text.count("a red circle")
    assert count > 30
    assert page.text.count(EVIL) == count
    assert len(page.tags) == len(Page(render(full_report())).tags)


def test_templates_escape_everything() -> None:
    """No template marks a value as safe, turns escaping off, or writes a value into an attribute without quotes."""
    found = environment()
    assert found.autoescape is True
    names = found.list_templates()
    assert {"page.html", "style.css", "curves.css", "blocks/gallery.html"} <= set(names)
    assert {name.removeprefix("blocks/").removesuffix(".html") for name in names if "blocks/" in name} == {
        block.kind for block in get_args(Block)
    }
    for name in names:
        assert found.loader is not None
        source = found.loader.get_source(found, name)[0]
        assert not re.search(r"\|\s*safe|autoescape", source), name
        assert name.endswith(".css") or "={{" not in source, f"{name} has an attribute without quotes"


@pytest.mark.parametrize("text", ["</style>", "</title><img src=x onerror=f()>", "{{ 7 * 7 }}{% raw %}", "a\0b"])
def test_a_text_stays_the_text_that_it_is(text: str) -> None:
    plain, page = Page(render(full_report())), Page(render(full_report(text)))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert not page.open
    assert "49" not in page.text


def test_the_pages_own_sentences_know_bold_code_and_links_only() -> None:
    html = render(Report(title="**t**", summary=["**bold** `a_b` <i>no</i>", "[more](clean/a-b.html) [x](//b.c)"]))
    assert "<b>bold</b> <code>a_b</code> &lt;i&gt;no&lt;/i&gt;" in html
    assert '<a href="clean/a-b.html">more</a> [x](//b.c)' in html
    assert "<h1>**t**</h1>" in html


def test_nothing_comes_from_outside() -> None:
    html = render(full_report())
    page = Page(html)
    assert "://" not in html
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), f"<{tag} {name}={value}>"
    assert "url(" not in html
    assert "@import" not in html
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in str(policy)


def test_links_and_filters_lead_somewhere() -> None:
    page = Page(render(full_report()))
    anchors = {str(attributes["id"]) for _, attributes in page.tags if "id" in attributes}
    links = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"}
    assert links
    assert links <= anchors
    radios = [attributes for tag, attributes in page.tags if tag == "input"]
    assert [radio["value"] for radio in radios] == ["all", "true", "false"]
    verdicts = [attributes["data-verdict"] for _, attributes in page.tags if "data-verdict" in attributes]
    assert verdicts == ["true", "false"]


def test_the_style_knows_every_colour_and_verdict() -> None:
    html = render(Report(title="t"))
    for i in range(NUM_COLORS):
        assert html.count(f"--s{i}:") == 2, "one for light, one for dark"
    for verdict in ("true", "partly", "false", "unparsed", "kept", "dropped", "borderline"):
        assert f"[value={verdict}]" in html


def luminance(color: str) -> float:
    """Relative luminance as WCAG defines it, of #rgb or #rrggbb."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in np.array(list(bytes.fromhex(digits))) / 255
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_words_have_contrast_by_day_and_by_night() -> None:
    css = render(Report(title="t")).split("</style>")[0]
    tables = [
        dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", rules)) for rules in re.findall(r":root\{([^}]*)\}", css)
    ]
    assert len(tables) == 2
    inks = [*(f"s{i}" for i in range(NUM_COLORS)), "ink", "soft", "accent", "good", "bad", "mid"]
    pairs = [(ink, ground) for ink in inks for ground in ("card", "bg")]
    pairs += [(verdict, f"{verdict}-bg") for verdict in ("good", "bad", "mid", "none")]
    for table in tables:
        for ink, ground in pairs:
            low, high = sorted((luminance(table[ink]), luminance(table[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} {table[ink]} on {ground} {table[ground]}"


def test_json_gives_the_same_report_back(tmp_path: Path) -> None:
    report = full_report(EVIL)
    write_report(tmp_path / "report.html", report)
    again = read_report(tmp_path / "report.json")
    assert again == report
    assert render(again) == (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_numbers_that_are_not_finite_stay_out_of_the_json() -> None:
    report = Report(
        title="t",
        headlines=[Headline(label="l", value=math.nan)],
        sections=[Section(title="s", blocks=[Charts(charts=[Chart(title="c", series=[
            Series(name="a", x=[1, 2, 3, 4], y=[1.0, math.inf, math.nan, 2.0])])])])],
    )  # fmt: skip
    told = json.dumps(to_json(report), allow_nan=False)
    html = render(from_json(json.loads(told)))
    assert "nan" not in html.split("</style>")[1].lower()
    assert html.split("<main>") == render(report).split("<main>")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no report"),
        ({"sections": []}, "no report"),
        ({"title": "t", "sections": [{"title": "s", "blocks": [{"kind": "tabel"}]}]}, 'did you mean "table"'),
        ({"title": "t", "sections": [3]}, r"sections\[0\]"),
        ({"title": "t", "sectionz": []}, "sectionz"),
        (
            {"title": "t", "sections": [{"title": "s", "blocks": [{"kind": "gallery", "cards": [
                {"image": {"uri": "https://evil.example/x.png", "width": 1, "height": 1}}]}]}]},
            "data URI",
        ),
    ],
)  # fmt: skip
def test_a_broken_json_is_told_in_a_sentence(data: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_json(data)


def test_missing_and_cut_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_report(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"title": ')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_report(tmp_path / "cut.json")
    with pytest.raises(UserError, match=r"report\.html"):
        write_report(tmp_path, Report(title="t"))


def test_sixty_small_images_fit_into_three_megabytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    cards = [Card(image=page_image(pixels), texts=[CardText(text="noise", verdict="true")]) for pixels in noise]
    target = tmp_path / "report.html"
    write_report(target, Report(title="t", sections=[Section(title="s", blocks=[Gallery(cards=cards)])]))
    assert target.stat().st_size < 3_000_000


def test_a_headline_tells_chance_and_target() -> None:
    def shown(**changes: object) -> str:
        head = Headline(label="recall", value=0.462, reference=0.005, target=0.4)
        return Page(render(Report(title="t", headlines=[replace(head, **changes)]))).text  # type: ignore[arg-type]

    assert "46.2%" in shown()
    assert "chance 0.5% (\u00d7 92)" in shown()
    assert "target 40% ✓ reached" in shown()
    assert "not reached" in shown(target=0.5)
    assert "✓ reached" in shown(target=0.5, better="lower")
    assert "not reached" in shown(value=None)


def test_the_best_number_of_a_column_is_marked_once() -> None:
    table = Table(
        columns=[Column(name="run"), Column(name="up", better="higher"), Column(name="down", better="lower")],
        rows=[["a", 1.0, 5.0], ["b", 2.0, 5.0], ["c", None, 5.0]],
    )
    html = render(Report(title="t", sections=[Section(title="s", blocks=[table])]))
    assert re.findall(r'<td class="best"><b>(.*?)</b>', html) == ["2"], "equal numbers have no best"
