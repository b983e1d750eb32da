"""Plots as files: what they show, that they are the same for the same figures, and what is left out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inspect.drawable import ODD, full
from tests.weights_cache.samples import LAYERS
from twdpo import plotting
from twdpo.errors import CacheError, UsageError
from twdpo.inspect import drawn, plots
from twdpo.inspect.figures import Figures
from twdpo.inspect.plots import PLOTS, write_plots
from twdpo.inspect.token_classes import CLASSES
from twdpo.plotting import plain_style

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def figures() -> Figures:
    return full()


def panels(figures: Figures, name: str) -> list[Any]:
    with plain_style():
        return plots._PLOTS[name](figures, "a cache").axes


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_each_plot_is_a_picture_of_both_kinds(figures: Figures, tmp_path: Path) -> None:
    paths = write_plots(figures, tmp_path / "new" / "plots", "cache, 40 of 40 pairs")
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in PLOTS for kind in ("png", "svg")]
    assert sorted(paths) == sorted((tmp_path / "new" / "plots").iterdir())
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") if path.suffix == ".png" else content.count(b"<svg ") == 1
        assert b"dc:date" not in content


def test_the_same_figures_give_the_same_bytes(figures: Figures, tmp_path: Path) -> None:
    import matplotlib

    for name in ("a", "b"):
        with matplotlib.rc_context({} if name == "a" else {"font.size": 30, "svg.hashsalt": "another"}):
            write_plots(figures if name == "a" else full(), tmp_path / name, "$x_1 & <b> 漢字 \x1b[31m")
    names = [path.name for path in (tmp_path / "a").iterdir()]
    assert len(names) == 14
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(("name", "field"), [("position", "position"), ("position-first-tokens", "first_tokens")])
def test_lines_show_the_means_of_each_layer_before_and_after_the_fix(figures: Figures, name: str, field: str) -> None:
    for fixed, axes in enumerate(panels(figures, name)):
        drawn_lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        # The default layer, which is the last here, is drawn over the others.
        for place, line in zip((1, 0, 2), drawn_lines, strict=True):
            assert line.get_ydata() == pytest.approx(getattr(figures, field)[fixed, place])
    assert labels(axes) == ["layer 29", "layer 0", "layer 3"]
    heights = [text.get_position()[1] for text in axes.texts]
    assert np.diff(sorted(heights)).min() > 0.05


def test_token_classes_are_ordered_by_weight(figures: Figures) -> None:
    means, shares = panels(figures, "token-classes")
    names = [text.get_text() for text in means.get_yticklabels()]
    default = figures.class_weights[1, LAYERS.index(29)]
    used = [code for code in range(len(CLASSES)) if figures.class_tokens[code]]
    assert names == [CLASSES[code] for code in sorted(used, key=lambda code: default[code])]
    [dots] = [each for each in means.collections if each.get_label() == "layer 29"]
    assert dots.get_offsets()[:, 0].tolist() == pytest.approx(sorted(default[used]))
    widths = [bar.get_width() for bar in shares.patches]
    assert sum(widths) == pytest.approx(200)
    assert any(f"({figures.class_tokens[used[0]]:,})" in text for text in labels(shares))


def test_distribution_has_a_panel_for_each_layer(figures: Figures) -> None:
    found = panels(figures, "distribution")
    assert [labels(axes)[0] for axes in found] == ["layer 0", "layer 3", "layer 29"]
    for place, axes in enumerate(found):
        tokens, mass = (patch.get_data().values for patch in axes.patches)
        assert tokens.sum() == pytest.approx(100)
        assert mass.sum() == pytest.approx(100)
        assert tokens == pytest.approx(100 * figures.weight_tokens[place][drawn.weight_bins(figures)[0]])


def test_the_judge_in_both_orders(figures: Figures) -> None:
    [agreement] = panels(figures, "order-agreement")
    assert [patch.get_data().values.sum() for patch in agreement.patches] == pytest.approx([100, 100])
    [margin] = panels(figures, "margin-effective")
    [dots] = [each for each in margin.collections if each.get_label() == "a pair"]
    assert dots.get_offsets()[:, 0].tolist() == pytest.approx(figures.margins.tolist())
    assert dots.get_offsets()[:, 1].tolist() == pytest.approx((100 * figures.margin_effective).tolist())
    field = panels(figures, "verdicts")[0]
    assert field.collections[0].get_array().sum() == figures.judged
    shares = drawn.quadrants(figures)
    assert sum(shares.values()) == pytest.approx(1)
    assert labels(field)[1] == f"chosen twice {drawn.percent(shares['chosen twice'])}"
    assert shares["first twice"] == figures.verdicts[10:, :10].sum() / figures.judged


@pytest.mark.parametrize("name", ODD)
def test_odd_figures_are_drawn(name: str, tmp_path: Path) -> None:
    figures = ODD[name]()
    paths = write_plots(figures, tmp_path, name)
    missing = drawn.left_out(figures)
    assert {path.stem for path in paths} == set(PLOTS) - set(missing)
    if name == "bare":
        assert set(missing) == {"token-classes", "order-agreement", "margin-effective", "verdicts"}


def test_of_many_layers_some_are_shown() -> None:
    figures = ODD["uniform"]()
    places = drawn.shown_layers(figures)
    assert len(figures.layers) == 30
    assert len(set(places)) == len(places) == 6
    assert [figures.layers[place] for place in places] == [20, 0, 80, 150, 220, 290]
    assert "6 of 30 layers" in drawn.caption(figures)


def test_without_matplotlib_one_line_says_what_to_install(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"pip install 'twdpo\[plots\]'"):
        write_plots(figures, tmp_path / "plots", "a cache")
    assert not (tmp_path / "plots").exists()


def test_a_file_in_the_way_is_an_error(figures: Figures, tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("mine")
    with pytest.raises(CacheError, match="a file is in the way"):
        write_plots(figures, tmp_path / "plots", "a cache")
    assert (tmp_path / "plots").read_text() == "mine"
