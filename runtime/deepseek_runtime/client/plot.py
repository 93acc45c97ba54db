"""A line chart as SVG, in nothing but text: no plotting library is worth its weight for one picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 40, 40
_LEGEND_LINE = 18
_COLOURS = ("#0b6e4f", "#3ba99c", "#c8553d", "#588bae", "#8d6a9f", "#777777")
_STYLE = "font: 12px sans-serif"


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: named lines over the same labels of the horizontal axis; None leaves a gap."""

    title: str
    labels: Sequence[str]
    lines: Mapping[str, Sequence[float | None]]

    @property
    def top(self) -> float:
        """The end of the vertical axis: the next of 1, 2, 5 times a power of ten that is a round fifth."""
        highest = max((value for line in self.lines.values() for value in line if value), default=1.0)
        unit = 10.0 ** (len(str(int(highest))) - 1)
        return next(unit * factor for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if unit * factor >= highest)


def chart(panels: Sequence[Panel], axis: str, dashed: Sequence[str]) -> str:
    """Panels side by side with one legend below; the names in `dashed` are bounds, not measurements."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    width, height = _WIDTH * len(panels), _HEIGHT + _LEGEND_LINE * len(names) + 8
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" style="{_STYLE}">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * _WIDTH} 0)">')
        parts += [*_frame(panel, axis), *_lines(panel, colours, dashed), "</g>"]
    for number, name in enumerate(names):
        parts += _legend(name, _HEIGHT + _LEGEND_LINE * number, colours[name], name in dashed)
    return "\n".join([*parts, "</svg>", ""])


def _x(panel: Panel, position: int) -> float:
    room = _WIDTH - _LEFT - _RIGHT
    return _LEFT + room * (position + 0.5) / len(panel.labels)


def _y(panel: Panel, value: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / panel.top


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _frame(panel: Panel, axis: str) -> list[str]:
    parts = [_text(_WIDTH / 2, 20, panel.title)]
    for fifth in range(6):
        value = panel.top * fifth / 5
        y = _y(panel, value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", "end"))
    labels = [_text(_x(panel, n), _HEIGHT - _BOTTOM + 16, label) for n, label in enumerate(panel.labels)]
    return [*parts, *labels, _text(_WIDTH / 2, _HEIGHT - 6, axis)]


def _lines(panel: Panel, colours: Mapping[str, str], dashed: Sequence[str]) -> list[str]:
    parts = []
    for name, values in panel.lines.items():
        points = [(_x(panel, n), _y(panel, value)) for n, value in enumerate(values) if value is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if name in dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"{dash}/>')
        if name not in dashed:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[name]}"/>' for x, y in points]
    return parts


def _legend(name: str, y: float, colour: str, is_dashed: bool) -> list[str]:
    dash = ' stroke-dasharray="6 4"' if is_dashed else ""
    middle = y + 8
    line = (
        f'<line x1="{_LEFT}" x2="{_LEFT + 28}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="2"{dash}/>'
    )
    return [line, _text(_LEFT + 36, middle + 4, name, "start")]
