"""Charts of the report: valid, within their frame, styled by class names alone, and with the right values."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from tests.inspect.drawable import ODD, full
from tests.weights_cache.samples import LAYERS
from twdpo.inspect import drawn
from twdpo.inspect.charts import charts
from twdpo.inspect.figures import Figures
from twdpo.inspect.svg import nice
from twdpo.inspect.token_classes import CLASSES

TITLES = [
    "Weight along the answer",
    "Weight of the first tokens",
    "Weight by class of token",
    "Distribution of the weights",
    "Agreement of the two orders",
    "Judge's margin and effective tokens",
    "What the judge prefers in both orders",
]
#: What the report's style sheet knows.
STYLED = {
    *(f"c-{part}" for part in ["bar", "line", "area", "dot", "axis", "grid", "label", "value"]),
    *(f"c-s{i}" for i in range(6)),
}
FIGURES = {"full": full, **ODD}
HOSTILE = '<script>alert(1)</script> & "quoted" \' \x00 \x1b[31m \u202e ]]> <!-- {{x}}'


@pytest.fixture(scope="module")
def figures() -> Figures:
    return full()


def parsed(figures: Figures, caption: str = "40 of 40 pairs.") -> dict[str, ElementTree.Element]:
    """Title → its figure."""
    root = ElementTree.fromstring(f"<body>{charts(figures, caption)}</body>")
    assert [element.tag for element in root] == ["figure"] * len(root)
    return {str(figure[0].get("aria-label")): figure for figure in root}


def hovers(figure: ElementTree.Element) -> list[str]:
    return [str(title.text) for title in figure.iter("title")]


@pytest.mark.parametrize("name", FIGURES)
def test_charts_are_valid_and_styled_by_class_alone(name: str) -> None:
    figures = FIGURES[name]()
    found = parsed(figures, HOSTILE)
    assert len(found) == 7 - len(drawn.left_out(figures))
    for figure in found.values():
        assert figure.attrib == {"class": "chart"}
        svg, caption = figure
        assert (svg.tag, caption.tag, svg.get("role")) == ("svg", "figcaption", "img")
        assert '<script>alert(1)</script> & "quoted" \' ⟨U+0000⟩ ⟨U+001B⟩[31m ⟨U+202E⟩' in str(caption.text)
        for element in figure.iter():
            assert element.tag in {"figure", "svg", "figcaption", "text", "path", "circle", "rect", "title"}
            assert not [key for key in element.attrib if key == "style" or key.startswith("on") or "href" in key]
            if element.tag in {"text", "path", "circle"} or element.get("class", "").startswith("c-"):
                assert set(str(element.get("class")).split()) <= STYLED


@pytest.mark.parametrize("name", FIGURES)
def test_every_number_is_finite_and_in_the_frame(name: str) -> None:
    for figure in parsed(FIGURES[name]()).values():
        _, _, width, height = (float(part) for part in str(figure[0].get("viewBox")).split())
        assert width == 320
        for element in figure[0].iter():
            across = [float(element.attrib[key]) for key in ("x", "cx") if key in element.attrib]
            down = [float(element.attrib[key]) for key in ("y", "cy") if key in element.attrib]
            points = re.findall(r"(\S+) (\S+)", re.sub("[ML]", " ", element.get("d", "")))
            across += [float(x) for x, _ in points]
            down += [float(y) for _, y in points]
            if element.tag == "rect":
                across.append(across[0] + float(element.attrib["width"]))
                down.append(down[0] + float(element.attrib["height"]))
            if element.tag == "text":
                # A character is about six units wide.
                length = 6.2 * len(str(element.text))
                anchor = element.get("text-anchor", "start")
                start = across[0] - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * length
                across += [start, start + length]
            assert all(math.isfinite(value) for value in across + down)
            assert all(-1 <= value <= width + 1 for value in across), ElementTree.tostring(element)
            assert all(-1 <= value <= height + 1 for value in down), ElementTree.tostring(element)


def test_titles(figures: Figures) -> None:
    assert list(parsed(figures)) == TITLES


def test_values_are_shown_under_the_pointer(figures: Figures) -> None:
    found = parsed(figures)
    layer, default = LAYERS[-1], LAYERS.index(LAYERS[-1])
    position = hovers(found[TITLES[0]])
    assert len(position) == 2 * 20
    assert position[23].splitlines() == [
        "15 to 20% of the answer, after the sink fix",
        f"layer {layer}: {figures.position[1, default, 3]:.2f}",
        f"layer 0: {figures.position[1, 0, 3]:.2f}",
        f"layer 3: {figures.position[1, 1, 3]:.2f}",
    ]
    first = hovers(found[TITLES[1]])
    assert first[0].startswith("token 1, 80 answers, as stored\n")
    assert f"layer 0: {figures.first_tokens[0, 0, 0]:.2f}" in first[0]
    classes = hovers(found[TITLES[2]])
    [words] = [text for text in classes if text.startswith("content words")]
    assert words.startswith(f"content words, {figures.class_tokens[CLASSES.index('content words')]:,} tokens\n")
    assert f"layer {layer}: {figures.class_weights[1, default, 0]:.2f}" in words
    cells = [int(text.split(": ")[1].split()[0]) for text in hovers(found[TITLES[6]])]
    assert sum(cells) == figures.judged == 40
    groups = [int(text.split(" ")[0]) for text in hovers(found[TITLES[5]])]
    assert groups == figures.margin_counts.tolist()


def test_lines_lie_where_their_values_are(figures: Figures) -> None:
    """Of even weights every line lies on the dashed one of even weights; of others none does."""
    for made, even in ((ODD["uniform"](), True), (figures, False)):
        svg = parsed(made)[TITLES[0]][0]
        paths = [
            (str(path.get("class")), re.findall(r" (\S+?)(?:L|$)", str(path.get("d")))) for path in svg.iter("path")
        ]
        [level, *_] = [y for style, ys in paths for y in ys if style == "c-axis"]
        lines = [set(ys) for style, ys in paths if style.startswith("c-line")]
        assert len(lines) == 2 * len(drawn.shown_layers(made))
        assert all((ys == {level}) == even for ys in lines)


@pytest.mark.parametrize(
    ("least", "step"),
    [(1, 1), (1.01, 2), (0.0163, 0.02), (0.3, 0.5), (0.0051, 0.01), (70, 100), (0.2, 0.2), (1e-5, 1e-5)],
)
def test_steps_of_an_axis_are_round(least: float, step: float) -> None:
    assert nice(least) == step
