"""Pictures are well-formed, bounded in size, and show what they are given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ti_trainer.workbench import pictures


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - our own


@pytest.mark.parametrize("count", [1, 2, 16, 17, 75, 1000])
def test_a_matrix_of_any_size_is_small(count: int) -> None:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(count, 20))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    svg = pictures.matrix((unit @ unit.T).astype(np.float32)[:75, :75])
    assert parsed(svg).get("class") == "ti-matrix"
    assert len(svg) < 200_000


def test_a_cell_has_its_color_and_number() -> None:
    svg = pictures.matrix(np.array([[1, -1], [0.5, 1]], np.float32))
    assert '#2563eb" shape-rendering="crispEdges" d="M26 26h24v24h-24zM50 50h24v24h-24z"' in svg
    assert '#dc2626" shape-rendering="crispEdges" d="M50 26h24v24h-24z"' in svg
    assert re.findall(r">([-.\d]+)</text>", svg)[-4:] == ["1", "-1.00", ".50", "1"]
    parsed(pictures.matrix(np.full((2, 2), np.nan, np.float32)))


def test_norms_and_drift_are_drawn_inside_their_frame() -> None:
    svg = pictures.norms(np.array([0.4, 9.0], np.float32), np.linspace(0.3, 0.5, 100, dtype=np.float32))
    assert svg.count("<title>") == 2
    assert "Vector 2: 9" in svg
    drawn = pictures.drift(
        {"clip_l": [(10, 1.0), (20, 0.5)], "clip_g": [(10, 1.0), (20, -0.2)]}, {"clip_l": [(10, 2), (20, 4)]}
    )
    for each in (svg, drawn, pictures.drift({}, {}), pictures.norms(np.zeros(1, np.float32), np.zeros(3, np.float32))):
        _, _, width, height = map(float, parsed(each).get("viewBox").split())
        for path in re.findall(r' d="([^"]*)"', each):
            assert "nan" not in path
            for x, y in re.findall(r"(?:M|L)([-\d.]+) ([-\d.]+)", path):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
