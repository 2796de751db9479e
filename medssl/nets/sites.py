"""Maps of which some cells are seen: whole, or as tiles (B K, C, *p) of the seen cells alone."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from medssl.core.masked import by_cell, enlarged
from medssl.nets.norms import GroupNorm

SMALLEST_TILE = 1
"""Sides of tiles up to which whole maps serve where a layer needs a rim: of a single voxel the rim
alone is 26. Larger tiles copy more than they hold as well, yet convolve a quarter of the sites when
one cell in four is seen, and convolving is what takes the time."""

Rim = tuple[tuple[int, int], ...]
"""Voxels before and after a tile, for each axis."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which cells are seen, and what follows from it.

    Args:
        visible: (B, 1, *f) bool, True where a cell is seen.
        cells: (B * K, 1 + axes) int64, sample and cell of each tile; None where maps stay whole.
        smallest: Sides of tiles up to which a rim does not pay.
    """

    visible: Tensor
    cells: Tensor | None = None
    smallest: int = SMALLEST_TILE
    masks: dict[tuple[tuple[int, ...], torch.dtype], Tensor] = field(default_factory=dict)
    tables: list[Tensor] = field(default_factory=list)

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(self.visible.shape[2:])

    @property
    def parts(self) -> int:
        """Tiles of one image."""
        return 1 if self.cells is None else len(self.cells) // len(self.visible)

    @property
    def index(self) -> tuple[Tensor, ...]:
        """Of each tile: its sample, and its place along each axis."""
        assert self.cells is not None
        return self.cells.unbind(1)

    def mask(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """(B, 1, *shape), 1 at seen sites; None for a map that is coarser than the cells."""
        if any(n % f for n, f in zip(shape, self.grid, strict=True)):
            return None
        if (shape, dtype) not in self.masks:
            self.masks[shape, dtype] = enlarged(self.visible, shape).to(dtype)
        return self.masks[shape, dtype]

    def table(self) -> Tensor:
        """(3 ** axes, B * K) tile at each offset from each tile; -1 hidden, -2 beyond the image.

        Offsets run from -1 to 1 along each axis, the last axis fastest.
        """
        if not self.tables:
            sample, *place = self.index
            axes = len(place)
            slot = torch.full_like(self.visible[:, 0], -1, dtype=torch.long)
            slot[self.index] = torch.arange(len(sample), device=slot.device)
            slot = pad(slot, (1, 1) * axes, value=-2)
            found = [
                slot[(sample, *(at + 1 + step for at, step in zip(place, offset, strict=True)))]
                for offset in _offsets(axes)
            ]
            self.tables.append(torch.stack(found))
        return self.tables[0]


@dataclass(frozen=True, eq=False)
class Sites:
    """A map of which only the sites of seen cells mean anything.

    Args:
        x: (B, C, *S); or (B * K, C, *p) where it is held as tiles.
        pattern: What is seen.
        tiled: Whether it is held as tiles.
    """

    x: Tensor
    pattern: Pattern
    tiled: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial sides of the whole map."""
        sides = tuple(self.x.shape[2:])
        if self.tiled:
            return tuple(n * f for n, f in zip(sides, self.pattern.grid, strict=True))
        return sides

    @property
    def partial(self) -> bool:
        """Whether there are hidden sites; coarse maps have none."""
        return self.tiled or self.mask is not None

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, *S), 1 at seen sites; None where all are."""
        return self.pattern.mask(self.shape, self.x.dtype)

    def dense(self, token: Tensor | None = None) -> Tensor:
        """The whole map (B, C, *S).

        Args:
            token: (1, C, 1, ...) what stands at hidden sites; None for 0.
        """
        if not self.tiled:
            mask = self.mask
            if mask is None:
                return self.x
            return self.x * mask if token is None else torch.where(mask > 0, self.x, token)
        samples, width = len(self.pattern.visible), self.x.shape[1]
        if token is None:
            whole = self.x.new_zeros(samples, width, *self.shape)
        else:
            whole = token.to(self.x.dtype).expand(samples, -1, *self.shape).clone()
        cells = by_cell(whole, self.pattern.grid)
        cells[self.pattern.index] = self.x
        return whole

    def whole(self) -> "Sites":
        """The same, not held as tiles."""
        return Sites(self.dense(), self.pattern, tiled=False) if self.tiled else self

    def normed(self, norm: nn.Module) -> "Sites":
        """After a norm of `nets.norms` whose moments see what is seen."""
        if not self.tiled:
            return self.like(norm(self.x, self.mask))
        if isinstance(norm, GroupNorm):
            return self.like(norm(self.x, None, self.pattern.parts))
        return self.like(norm(self.x))

    def like(self, x: Tensor) -> "Sites":
        """Other values, held in the same way."""
        return Sites(x, self.pattern, self.tiled)


def with_rim(x: Sites, rim: Rim, border: float) -> Tensor:
    """Tiles with a rim: from seen neighbours, 0 for hidden ones, `border` beyond the image."""
    if not any(any(one) for one in rim):
        return x.x
    return _Padded.apply(x.x, x.pattern.table(), rim, border)  # type: ignore[no-untyped-call]


class _Padded(torch.autograd.Function):
    """Each tile gives slabs of itself to its neighbours, and gets their gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, rim: Rim, border: float) -> Tensor:
        sides = tuple(x.shape[2:])
        padded = x.new_empty(
            *x.shape[:2], *(n + low + high for n, (low, high) in zip(sides, rim, strict=True))
        )
        for offset, rows in zip(_offsets(len(sides)), table, strict=True):
            given, taken = _slabs(sides, rim, offset)
            if not any(offset):
                padded[taken] = x
            elif padded[taken].numel():
                slab = x[given].index_select(0, rows.clamp_min(0))
                columns = (-1,) + (1,) * (x.ndim - 1)
                slab.masked_fill_((rows == -1).reshape(columns), 0.0)
                padded[taken] = slab.masked_fill_((rows == -2).reshape(columns), border)
        ctx.save_for_backward(table)
        ctx.rim, ctx.sides = rim, sides
        return padded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (table,) = ctx.saved_tensors
        sides, rim = ctx.sides, ctx.rim
        offsets = _offsets(len(sides))
        _, centre = _slabs(sides, rim, (0,) * len(sides))
        own = gradient[centre].clone(memory_format=torch.contiguous_format)
        # A tile gives a slab to the tile that sees it at `offset`, its own neighbour at the
        # opposite offset: the row of the table that is as far from the end.
        for offset, rows in zip(offsets, table.flip(0), strict=True):
            given, taken = _slabs(sides, rim, offset)
            if any(offset) and gradient[taken].numel():
                slab = gradient[taken].index_select(0, rows.clamp_min(0))
                columns = (-1,) + (1,) * (gradient.ndim - 1)
                own[given] += slab.masked_fill_((rows < 0).reshape(columns), 0.0)
        return own, None, None, None


def _slabs(
    sides: tuple[int, ...], rim: Rim, offset: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What the tile at `offset` gives, in its voxels, and where it goes, in padded ones."""
    given, taken = [slice(None)] * 2, [slice(None)] * 2
    for n, (low, high), step in zip(sides, rim, offset, strict=True):
        if step < 0:
            given.append(slice(n - low, n))
            taken.append(slice(0, low))
        elif step > 0:
            given.append(slice(0, high))
            taken.append(slice(low + n, low + n + high))
        else:
            given.append(slice(0, n))
            taken.append(slice(low, low + n))
    return tuple(given), tuple(taken)


def _offsets(axes: int) -> tuple[tuple[int, ...], ...]:
    """Of a cell and its neighbours; opposite ones are as far from the start as from the end."""
    return tuple(itertools.product((-1, 0, 1), repeat=axes))
