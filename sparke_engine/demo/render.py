"""Draws scenes as pictures with signed distance functions: anti-aliased, batched, on any device."""

import math
from typing import Final

import torch
from torch import Tensor

from sparke_engine.demo.scene import Scenes

SIZE_PX: Final = 64

OBJECT_RGB: Final = (
    (0.90, 0.12, 0.14),  # red
    (0.98, 0.52, 0.06),  # orange
    (0.98, 0.88, 0.12),  # yellow
    (0.30, 0.82, 0.22),  # green
    (0.22, 0.86, 0.92),  # cyan
    (0.16, 0.34, 0.96),  # blue
    (0.58, 0.22, 0.88),  # purple
    (0.99, 0.45, 0.74),  # pink
)
# Top and bottom of a vertical gradient.
BACKGROUND_RGB: Final = (
    ((0.93, 0.95, 1.00), (0.99, 0.99, 0.99)),  # snow
    ((0.02, 0.02, 0.08), (0.08, 0.08, 0.22)),  # night
    ((0.56, 0.57, 0.58), (0.42, 0.43, 0.44)),  # stone
    ((0.93, 0.84, 0.64), (0.84, 0.72, 0.50)),  # sand
    ((0.10, 0.52, 0.58), (0.02, 0.32, 0.42)),  # sea
    ((0.12, 0.34, 0.14), (0.04, 0.20, 0.08)),  # forest
    ((0.42, 0.08, 0.28), (0.26, 0.03, 0.18)),  # plum
    ((0.40, 0.24, 0.13), (0.26, 0.14, 0.07)),  # chocolate
)


def render(scenes: Scenes) -> Tensor:
    """Pictures of the scenes, float32 [b,3,64,64] in [0,1]."""
    device = scenes.shape.device
    axis = torch.arange(SIZE_PX, device=device, dtype=torch.float32) + 0.5
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    dx = columns - scenes.centre_px[:, 0, None, None]
    dy = rows - scenes.centre_px[:, 1, None, None]
    x, y = _rotate(dx, dy, scenes.angle)
    radius_px = scenes.radius_px[:, None, None]
    distance_px = _distance(x / radius_px, y / radius_px, scenes.shape) * radius_px
    coverage = (0.5 - distance_px).clamp(0.0, 1.0)[:, None]

    colour = torch.tensor(OBJECT_RGB, device=device)[scenes.colour] + scenes.tint[:, 0]
    ink = 1.0 - 0.42 * _texture(dx, dy, scenes)[:, None]
    figure = colour[:, :, None, None] * ink
    ends = torch.tensor(BACKGROUND_RGB, device=device)[scenes.background] + scenes.tint[:, 1, None, :]
    height = (rows / SIZE_PX)[None, None]
    ground = ends[:, 0, :, None, None] * (1.0 - height) + ends[:, 1, :, None, None] * height
    return (coverage * figure + (1.0 - coverage) * ground).clamp(0.0, 1.0)


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cosine * x + sine * y, cosine * y - sine * x


def _texture(dx: Tensor, dy: Tensor, scenes: Scenes) -> Tensor:
    """How much dark ink lies on each pixel of the object, [b,h,w] in [0,1]."""
    u, v = _rotate(dx, dy, scenes.texture_angle)
    phase = scenes.texture_phase[:, :, None, None]
    stripes = (0.5 + 1.6 * torch.sin(2 * torch.pi * (u / 7.0 + phase[:, 0]))).clamp(0.0, 1.0)
    across = torch.remainder(u / 7.5 + phase[:, 0], 1.0) - 0.5
    along = torch.remainder(v / 7.5 + phase[:, 1], 1.0) - 0.5
    dots = (0.5 + 2.3 - 7.5 * torch.hypot(across, along)).clamp(0.0, 1.0)
    kind = scenes.texture[:, None, None]
    return torch.where(kind == 1, stripes, torch.where(kind == 2, dots, torch.zeros_like(stripes)))


def _distance(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """Signed distance to the outline of a shape of radius about one: negative inside; exact near the outline."""
    kind = shape[:, None, None]
    distance = torch.zeros_like(x)
    for index, outline in enumerate((_circle, _square, _triangle, _star, _cross, _heart, _ring, _moon)):
        distance = torch.where(kind == index, outline(x, y), distance)
    return distance


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.92


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    across, along = x.abs() - half_width, y.abs() - half_height
    outside = torch.hypot(across.clamp(min=0.0), along.clamp(min=0.0))
    return outside + torch.maximum(across, along).clamp(max=0.0)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.76, 0.76)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    sides = [x * math.sin(a) - y * math.cos(a) for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    return torch.stack(sides).amax(dim=0) - 0.52


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: the plane is folded into one tenth, where the outline is a straight edge from tip to notch."""
    sector = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y), sector)
    angle = torch.minimum(angle, sector - angle)
    length = torch.hypot(x, y)
    tip, notch = 1.05, 0.46
    notch_x, notch_y = notch * math.sin(sector / 2), notch * math.cos(sector / 2)
    edge_x, edge_y = notch_x, notch_y - tip
    norm = math.hypot(edge_x, edge_y)
    return (edge_y * -(length * angle.sin()) + edge_x * (length * angle.cos() - tip)) / norm


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.96, 0.31), _box(x, y, 0.31, 0.96))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Two lobes on a turned square: the union of a square on its corner and two circles on its upper sides."""
    u, v = (x + (y - 0.12)) / math.sqrt(2), (x - (y - 0.12)) / math.sqrt(2)
    half = 0.50
    body = _box(u, v, half, half)
    right = torch.hypot(u, v - half) - half
    left = torch.hypot(u + half, v) - half
    return torch.minimum(body, torch.minimum(left, right))


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72).abs() - 0.22


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.98, 0.80 - torch.hypot(x - 0.52, y))
