"""The flow of an action, from noise to what the robot executes, drawn over the robot's picture.

One small plot per action dimension: flow time runs to the right from 0 (noise) to 1 (action), the
two thin lines are the action's bounds, the bright path is the current action's x_t, the faint ones
are the actions before it. The ring is the noise, the disc the executed action.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int, int]

SCALE = 2  # the panel is drawn twice as large and shrunk, which smooths its lines
SPAN = 2.4  # values shown, -SPAN to SPAN; noise beyond it (2 in 100) is drawn at the edge
TRAIL = 12  # past actions that stay visible
BACK: Color = (16, 22, 30, 255)
OPACITY = 225
FRAME: Color = (120, 135, 150, 255)
BOUND: Color = (90, 103, 116, 255)
TEXT: Color = (235, 240, 245, 255)
NOISE: Color = (120, 170, 255, 255)
ACTION: Color = (255, 170, 60, 255)


class FlowOverlay:
    """Draws over the right part of every frame.

    Args:
        names: Of the action's dimensions.
        size: Width and height of the frames, pixels.
        title: First line, top left.
    """

    def __init__(self, names: Sequence[str], size: tuple[int, int], title: str) -> None:
        self.size, self.title = size, title
        self.columns = math.ceil(len(names) / 6)
        self.rows = math.ceil(len(names) / self.columns)
        self.past: deque[NDArray[np.float32]] = deque(maxlen=TRAIL)
        self.font = ImageFont.load_default(12)
        width = min(size[0] // 3 if self.columns == 1 else size[0] // 2, 200 * self.columns)
        self.panel = (width, size[1] - 16)
        self.boxes = [self._box(i) for i in range(len(names))]
        self.background = self._background(names)

    def _box(self, i: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of plot i, in the panel's enlarged pixels."""
        width, height = self.panel[0] / self.columns, (self.panel[1] - 22) / self.rows
        column, row = divmod(i, self.rows)
        left, top = 10 + column * width, 18 + row * height
        return tuple(SCALE * x for x in (left, top, left + width - 36, top + height - 22))  # type: ignore[return-value]

    def _background(self, names: Sequence[str]) -> Image.Image:
        """Everything that is the same on every frame."""
        image = Image.new("RGB", (SCALE * self.panel[0], SCALE * self.panel[1]), BACK[:3])
        draw = ImageDraw.Draw(image)
        font, small = (ImageFont.load_default(points * SCALE) for points in (12, 10))
        for name, box in zip(names, self.boxes, strict=True):
            left, top, right, _ = box
            draw.text((left, top - 16 * SCALE), name, TEXT, font)
            draw.rectangle(box, outline=FRAME)
            for bound in (-1, 1):
                y = self._y(box, bound)
                draw.line((left, y, right, y), BOUND, SCALE)
                draw.text((right + 5, y), f"{bound:+d}", FRAME, small, anchor="lm")
        left, right = self.boxes[0][0], self.boxes[-1][2]
        for text, x, anchor in (("noise", left, "ls"), ("action", right, "rs")):
            draw.text((x, SCALE * (self.panel[1] - 7)), text, FRAME, font, anchor=anchor)
        return image

    @staticmethod
    def _y(box: tuple[float, float, float, float], value: float) -> float:
        """Height of a value in a plot."""
        clipped = max(-SPAN, min(SPAN, value))
        return (box[1] + box[3]) / 2 - clipped / SPAN * (box[3] - box[1]) / 2

    def draw(
        self, frame: NDArray[np.uint8], points: NDArray[np.float32], status: str
    ) -> NDArray[np.uint8]:
        """The frame with the flow of one action over it.

        Args:
            frame: Shape (height, width, 3).
            points: x_0 .. x_1 of the chain, shape (flow_steps + 1, action_dim); x_1 may lie outside
                the bounds, the disc shows the clipped, executed action.
            status: Second line, top left.

        Returns:
            Shape (height, width, 3), a new array.
        """
        panel = self.background.copy()
        draw = ImageDraw.Draw(panel, "RGBA")
        for age, past in enumerate(reversed(self.past), start=1):
            faint = (*ACTION[:3], round(90 * (1 - age / (TRAIL + 1))))
            for i in range(len(self.boxes)):
                draw.line(self._line(i, past), faint, SCALE)
        self._path(draw, points)
        self.past.append(points)
        image = Image.fromarray(frame)
        if image.size != self.size:
            image = image.resize(self.size)
        if self.columns > 1:  # a panel so wide would cover the middle, where the robot is
            aside = Image.new("RGB", self.size, BACK[:3])
            aside.paste(image, (-(self.panel[0] + 8) // 2, 0))
            image = aside
        small = panel.resize(self.panel, Image.Resampling.BOX)
        mask = Image.new("L", self.panel, OPACITY)
        image.paste(small, (self.size[0] - self.panel[0] - 8, 8), mask)
        text = ImageDraw.Draw(image)
        for line, y in ((self.title, 10), (status, 27)):
            text.text((10, y), line, TEXT, self.font, stroke_width=1, stroke_fill=(0, 0, 0))
        return np.asarray(image)

    def _line(self, i: int, points: NDArray[np.float32]) -> list[tuple[float, float]]:
        """Pixels of dimension i's path."""
        box, last = self.boxes[i], len(points) - 1
        step = (box[2] - box[0] - 16 * SCALE) / last
        return [
            (box[0] + 8 * SCALE + k * step, self._y(box, float(x)))
            for k, x in enumerate(points[:, i])
        ]

    def _path(self, draw: ImageDraw.ImageDraw, points: NDArray[np.float32]) -> None:
        last = len(points) - 1
        for i, box in enumerate(self.boxes):
            line = self._line(i, points)
            for k in range(last):
                draw.line((*line[k], *line[k + 1]), _blend((k + 1) / last), 3 * SCALE)
            for k, (x, y) in enumerate(line[1:-1], start=1):
                _disc(draw, x, y, 2 * SCALE, _blend(k / last))
            _disc(draw, *line[0], 4 * SCALE, BACK, NOISE)
            executed = self._y(box, float(np.clip(points[-1, i], -1, 1)))
            _disc(draw, line[-1][0], executed, 5 * SCALE, ACTION, TEXT)


def _blend(t: float) -> Color:
    """From the noise's colour at 0 to the action's at 1."""
    r, g, b = (round((1 - t) * n + t * a) for n, a in zip(NOISE[:3], ACTION[:3], strict=True))
    return r, g, b, 255


def _disc(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    radius: float,
    fill: Color,
    outline: Color | None = None,
) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill, outline, width=SCALE)
