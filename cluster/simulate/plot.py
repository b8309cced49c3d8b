"""Draws goodput against load as one SVG file, by hand: a handful of lines needs no plotting library. Knows no runs.

Colours are Okabe and Ito's, which people with any colour vision tell apart; our line is the thick one, and every line
is labelled at its end, so nothing depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 860, 470
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 56, 56
LABEL_HEIGHT = 15
FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#333"'
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A", "#8C6D31", "#6A51A3", "#000000")
DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True, slots=True)
class Line:
    """One curve."""

    label: str
    points: Mapping[float, float]
    """Goodput (0 to 1) by load."""
    emphasised: bool = False


def goodput_plot(title: str, subtitle: str, lines: Sequence[Line], target: float) -> str:
    """The picture as SVG text.

    Args:
        target: goodput at which a horizontal line is drawn.
    """
    loads = sorted({load for line in lines for load in line.points})
    low, high = loads[0], loads[-1]
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(load: float) -> float:
        return LEFT + (load - low) / (high - low) * plot_width

    def y(share: float) -> float:
        return TOP + (1 - share) * plot_height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 24, title, size=16, weight="bold"),
        _text(LEFT, 43, subtitle, colour="#666"),
    ]
    for percent in range(0, 101, 20):
        height = y(percent / 100)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + plot_width}" y1="{height:.1f}" y2="{height:.1f}" stroke="#e6e6e6"/>'
        )
        parts.append(_text(LEFT - 8, height + 4, f"{percent} %", anchor="end"))
    for load in loads:
        parts.append(
            f'<line x1="{x(load):.1f}" x2="{x(load):.1f}" y1="{TOP + plot_height}" y2="{TOP + plot_height + 5}" '
            f'stroke="#999"/>'
        )
        parts.append(_text(x(load), TOP + plot_height + 20, f"{load:g}×", anchor="middle"))
    parts.append(
        f'<line x1="{LEFT}" x2="{LEFT + plot_width}" y1="{y(target):.1f}" y2="{y(target):.1f}" stroke="#333" '
        f'stroke-dasharray="4 4"/>'
    )
    parts.append(_text(LEFT + plot_width / 2, HEIGHT - 14, "load, in multiples of the recorded rate", anchor="middle"))
    middle = TOP + plot_height / 2
    parts.append(
        f'<text x="18" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 18 {middle:.1f})">'
        f"requests served within their targets</text>"
    )
    # Ours last, so that it lies on top.
    for number, line in sorted(enumerate(lines), key=lambda entry: entry[1].emphasised):
        parts.append(_curve(line, number, x, y))
    ends = [(y(line.points[high]) + 4, number) for number, line in enumerate(lines)]
    for (height, number), (wanted, _) in zip(_spread(ends), sorted(ends), strict=True):
        line, colour = lines[number], _colour(number, lines)
        edge = LEFT + plot_width
        parts.append(
            f'<line x1="{edge + 3}" y1="{wanted - 4:.1f}" x2="{edge + 14}" y2="{height - 4:.1f}" stroke="{colour}" '
            f'stroke-width="0.8"/>'
        )
        weight = "bold" if line.emphasised else "normal"
        parts.append(_text(edge + 18, height, line.label, colour=colour, weight=weight))
    parts.append("</svg>\n")
    return "\n".join(parts)


def _curve(line: Line, number: int, x: object, y: object) -> str:
    assert callable(x)
    assert callable(y)
    places = " ".join(f"{x(load):.1f},{y(share):.1f}" for load, share in sorted(line.points.items()))
    dash = "" if line.emphasised else DASHES[number // len(COLOURS) % len(DASHES)]
    colour, width = ("#0072B2", 3.5) if line.emphasised else (_plain_colour(number), 1.5)
    return (
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"'
        + (f' stroke-dasharray="{dash}"/>' if dash else "/>")
    )


def _colour(number: int, lines: Sequence[Line]) -> str:
    return COLOURS[0] if lines[number].emphasised else _plain_colour(number)


def _plain_colour(number: int) -> str:
    """The first colour is kept for the emphasised line."""
    return COLOURS[1 + number % (len(COLOURS) - 1)]


def _spread(ends: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Label heights in order, moved apart so that none overlaps and none leaves the picture."""
    placed: list[tuple[float, int]] = []
    for height, number in sorted(ends):
        least = placed[-1][0] + LABEL_HEIGHT if placed else TOP
        placed.append((max(height, least), number))
    overhang = placed[-1][0] - (HEIGHT - BOTTOM + 8)
    if overhang > 0:
        limit = float("inf")
        for index in range(len(placed) - 1, -1, -1):
            height = min(placed[index][0], HEIGHT - BOTTOM + 8, limit)
            placed[index] = (height, placed[index][1])
            limit = height - LABEL_HEIGHT
    return placed


def _text(
    left: float,
    top: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = 12,
    colour: str = "#333",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
