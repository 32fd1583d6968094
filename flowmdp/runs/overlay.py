"""The flow of an action, from noise to what the robot executes, drawn over the robot's picture.

One small plot per action dimension: flow time runs to the right from 0 (noise) to 1 (action), the
two thin lines are the action's bounds, the bright path is the current action's x_t, the faint ones
are the actions before it. The ring is the noise, the disc the executed action.

A chain that plans a chunk of actions has them side by side in every plot, the first on the left,
each with its own path from noise to action; a line joins the actions, and the one that is executed
stands on a lighter ground.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

Color = tuple[int, int, int, int]
Box = tuple[float, float, float, float]

SCALE = 2  # the panel is drawn twice as large and shrunk, which smooths its lines
SPAN = 2.4  # values shown, -SPAN to SPAN; noise beyond it (2 in 100) is drawn at the edge
TRAIL = 12  # past actions that stay visible
BACK: Color = (16, 22, 30, 255)
NOW: Color = (44, 56, 70, 255)
OPACITY = 225
FRAME: Color = (120, 135, 150, 255)
BOUND: Color = (90, 103, 116, 255)
TEXT: Color = (235, 240, 245, 255)
NOISE: Color = (120, 170, 255, 255)
ACTION: Color = (255, 170, 60, 255)


class FlowOverlay:
    """Draws over the right part of every frame.

    Args:
        names: Of the robot's action dimensions.
        size: Width and height of the frames, pixels.
        title: First line, top left.
        chunk: Actions that one chain plans.
    """

    def __init__(
        self, names: Sequence[str], size: tuple[int, int], title: str, chunk: int = 1
    ) -> None:
        self.size, self.title, self.chunk = size, title, chunk
        self.columns = math.ceil(len(names) / 6)
        self.rows = math.ceil(len(names) / self.columns)
        self.past: deque[NDArray[np.float32]] = deque(maxlen=TRAIL)
        self.font = ImageFont.load_default(12)
        self.wide = self.columns > 1 or chunk > 1
        width = size[0] // 2 if self.wide else min(size[0] // 3, 200)
        width = min(width, 200 * self.columns) if chunk == 1 else width
        self.panel = (width, size[1] - 16)
        self.boxes = [self._box(i) for i in range(len(names))]
        self.background = self._background(names)

    def _box(self, i: int) -> Box:
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
        chunk, y = self.chunk, SCALE * (self.panel[1] - 7)
        words = ("noise", "action") if chunk == 1 else ("action 1", f"action {chunk}")
        for text, x, anchor in zip(words, (left, right), ("ls", "rs"), strict=True):
            draw.text((x, y), text, FRAME, font, anchor=anchor)
        if chunk > 1:
            middle, up = (left + right) / 2, y - 4 * SCALE
            draw.text((middle - 12 * SCALE, y), "noise", NOISE, font, anchor="rs")
            draw.text((middle + 12 * SCALE, y), "executed", ACTION, font, anchor="ls")
            _disc(draw, middle - 7 * SCALE, up, 3 * SCALE, BACK, NOISE)
            _disc(draw, middle + 7 * SCALE, up, 3 * SCALE, ACTION, TEXT)
        return image

    @staticmethod
    def _y(box: Box, value: float) -> float:
        """Height of a value in a plot."""
        clipped = max(-SPAN, min(SPAN, value))
        return (box[1] + box[3]) / 2 - clipped / SPAN * (box[3] - box[1]) / 2

    def draw(
        self,
        frame: NDArray[np.uint8],
        points: NDArray[np.float32],
        status: str,
        position: int = 0,
    ) -> NDArray[np.uint8]:
        """The frame with the flow of one chain over it.

        Args:
            frame: Shape (height, width, 3).
            points: x_0 .. x_1 of the chain, shape (flow_steps + 1, chunk * dimensions); x_1 may lie
                outside the bounds, the disc shows the clipped, executed action.
            status: Second line, top left.
            position: Which action of the chunk is executed, from 0 on.

        Returns:
            Shape (height, width, 3), a new array.
        """
        panel = self.background.copy()
        draw = ImageDraw.Draw(panel, "RGBA")
        chain = points.reshape(len(points), self.chunk, -1)
        if self.chunk == 1:
            for age, past in enumerate(reversed(self.past), start=1):
                faint = (*ACTION[:3], round(90 * (1 - age / (TRAIL + 1))))
                for i in range(len(self.boxes)):
                    draw.line(self._line(i, past, 0), faint, SCALE)
            self.past.append(chain)
        else:
            self._ground(draw, chain, position)
        for j in range(self.chunk):
            self._path(draw, chain, j)
        image = Image.fromarray(frame)
        if image.size != self.size:
            image = ImageOps.pad(image, self.size)
        if self.wide:  # a panel so wide would cover the middle, where the robot is
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

    def _line(self, i: int, chain: NDArray[np.float32], j: int) -> list[tuple[float, float]]:
        """Pixels of dimension i's path of action j."""
        box, last = self.boxes[i], len(chain) - 1
        left, width = self._place(box, j)
        return [
            (left + k * width / last, self._y(box, float(x))) for k, x in enumerate(chain[:, j, i])
        ]

    def _place(self, box: Box, j: int) -> tuple[float, float]:
        """Left end and width of action j's paths in a plot."""
        margin = 8 * SCALE
        whole = (box[2] - box[0] - 2 * margin) / self.chunk
        gap = 0.0 if self.chunk == 1 else 0.3 * whole
        return box[0] + margin + j * whole + gap / 2, whole - gap

    def _ground(self, draw: ImageDraw.ImageDraw, chain: NDArray[np.float32], position: int) -> None:
        """What lies under a chunk's paths: the executed action's ground, the line of the plan."""
        for i, box in enumerate(self.boxes):
            left, width = self._place(box, position)
            ground = left - 0.2 * width, box[1] + SCALE, left + 1.2 * width, box[3] - SCALE
            draw.rectangle(ground, NOW)
            for bound in (-1, 1):
                y = self._y(box, bound)
                draw.line((ground[0], y, ground[2], y), BOUND, SCALE)
            plan = [(sum(self._place(box, j)), self._end(i, chain, j)) for j in range(self.chunk)]
            draw.line(plan, (*ACTION[:3], 110), SCALE)

    def _end(self, i: int, chain: NDArray[np.float32], j: int) -> float:
        """Height of what is executed."""
        return self._y(self.boxes[i], float(np.clip(chain[-1, j, i], -1, 1)))

    def _path(self, draw: ImageDraw.ImageDraw, chain: NDArray[np.float32], j: int) -> None:
        last = len(chain) - 1
        thick, small, ring, disc = (3.0, 2.0, 4.0, 5.0)
        if self.chunk > 1:  # as far as there is room
            thick, small = 2.0, 0.0
            ring = disc = min(3.0, self._place(self.boxes[0], 0)[1] / SCALE / 2)
        for i in range(len(self.boxes)):
            line = self._line(i, chain, j)
            for k in range(last):
                draw.line((*line[k], *line[k + 1]), _blend((k + 1) / last), round(thick * SCALE))
            for k, (x, y) in enumerate(line[1:-1], start=1):
                _disc(draw, x, y, small * SCALE, _blend(k / last))
            _disc(draw, *line[0], ring * SCALE, BACK, NOISE)
            _disc(draw, line[-1][0], self._end(i, chain, j), disc * SCALE, ACTION, TEXT)


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
