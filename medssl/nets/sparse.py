r"""Encoders that see some cells of an image only: convolutions over what is seen, and nothing else.

With m = 1 at the sites of seen cells, repeated to the size of each map, a layer is

.. math:: y = m \cdot \mathrm{norm}_m(\mathrm{conv}(m \cdot x)) ,

where the norm takes its moments over seen sites. `SparseView` computes that on whole maps;
`ActiveTiles` computes the same on the seen cells alone, which are kept as tiles (B K, C, *p) with a
rim that is read from their neighbours. Maps whose voxels are larger than a cell are seen whole.

Both walk through the `features` of a dense encoder, traced once, and use its own parameters. The
mask is an argument; nothing of a batch is kept.

Reference: Tian et al. Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked
Modeling. ICLR 2023.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from medssl.core.errors import UsageError
from medssl.core.masked import by_cell
from medssl.nets.norms import BatchNorm, GroupNorm, LayerNorm
from medssl.nets.sites import SMALLEST_TILE, Pattern, Rim, Sites, with_rim

POINTWISE_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Identity,
    nn.Dropout,
    nn.Linear,
    nn.Flatten,
)
POINTWISE_FUNCTIONS: frozenset[Any] = frozenset(
    {
        operator.add,
        operator.iadd,
        operator.sub,
        operator.mul,
        operator.imul,
        operator.getitem,
        getattr,
        torch.add,
        torch.mul,
        torch.relu,
        torch.sigmoid,
        functional.relu,
        functional.leaky_relu,
        functional.gelu,
        functional.silu,
    }
)
"""What acts on each site by itself."""
POINTWISE_METHODS = frozenset(
    {"add", "mul", "relu", "sigmoid", "size", "view", "reshape", "flatten"}
)
MAX_POOLS: frozenset[Any] = frozenset(
    {functional.max_pool2d, functional.max_pool3d, torch.max_pool2d, torch.max_pool3d}
)


class SparseView:
    """The masked form of an encoder, on whole maps. It has no parameters of its own.

    Args:
        encoder: With `features(image)`, made of convolutions, pools, norms of `nets.norms` and
            functions of single sites.

    Raises:
        UsageError: The encoder has a layer without a masked form.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.steps = _traced(encoder)

    def state_dict(self) -> dict[str, Tensor]:
        """That of the encoder, under its names."""
        return self.encoder.state_dict()

    def sites(self, image: Tensor, visible: Tensor) -> list[Sites]:
        """What the encoder makes of the seen cells, fine to coarse.

        Args:
            image: (B, C, *S).
            visible: (B, 1, *f) bool; the sides S are multiples of f.
        """
        return self._run(Sites(image, Pattern(visible), tiled=False))

    def features(self, image: Tensor, visible: Tensor) -> list[Tensor]:
        """`sites` as whole maps, 0 where nothing was seen."""
        return [found.dense() for found in self.sites(image, visible)]

    def _run(self, image: Sites) -> list[Sites]:
        known: dict[str, Any] = {}
        for step in self.steps:
            arguments = _filled(step.arguments, known)
            options = _filled(step.options, known)
            if step.kind == "placeholder":
                known[step.name] = image
            elif step.kind == "output":
                return list(arguments[0])
            elif step.kind == "get_attr":
                known[step.name] = operator.attrgetter(step.target)(self.encoder)
            elif step.kind == "call_module":
                part = self.encoder.get_submodule(step.target)
                known[step.name] = _module(part, *arguments)
            elif step.target in MAX_POOLS:
                known[step.name] = _max_pool(*arguments, **options)
            else:
                known[step.name] = _pointwise(step, arguments, options)
        raise AssertionError("a traced encoder ends with its output")


class ActiveTiles(SparseView):
    """The masked form of an encoder on the seen cells alone; the same values, in less time.

    Args:
        encoder: As for `SparseView`.
        smallest: Sides of tiles up to which the rest is computed on whole maps.

    Raises:
        UsageError: The encoder has a layer without a masked form.
    """

    def __init__(self, encoder: nn.Module, *, smallest: int = SMALLEST_TILE) -> None:
        super().__init__(encoder)
        self.smallest = smallest

    def sites(self, image: Tensor, visible: Tensor) -> list[Sites]:
        """What the encoder makes of the seen cells, fine to coarse.

        Args:
            image: (B, C, *S).
            visible: (B, 1, *f) bool, with as many seen cells in each image; the sides S are
                multiples of f.

        Raises:
            ValueError: The images have different numbers of seen cells.
        """
        counts = visible.flatten(1).sum(1)
        if bool((counts != counts[0]).any()):
            raise ValueError(
                f"images of {counts.tolist()} seen cells in one batch; make them equal"
            )
        pattern = Pattern(visible, visible[:, 0].nonzero(), self.smallest)
        tiles = by_cell(image, pattern.grid)[pattern.index]
        return self._run(Sites(tiles, pattern, tiled=True))


def sparse_view(encoder: nn.Module, *, tiles: bool = False) -> SparseView:
    """The masked form of an encoder, with its parameters and their names.

    Args:
        encoder: As for `SparseView`.
        tiles: Whether to compute seen cells alone: worth it in 3D, not in 2D, where the rim of a
            tile costs what the hidden cells save.
    """
    return ActiveTiles(encoder) if tiles else SparseView(encoder)


@dataclass(frozen=True)
class _Known:
    """The result of an earlier step."""

    name: str


@dataclass(frozen=True)
class _Step:
    kind: str
    name: str
    target: Any
    arguments: Any
    options: Any


class _Tracer(fx.Tracer):
    """Norms are single steps, not what they consist of."""

    traced_func_name = "features"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        norm = isinstance(m, BatchNorm | GroupNorm | LayerNorm)
        return norm or super().is_leaf_module(m, module_qualified_name)


def _traced(encoder: nn.Module) -> tuple[_Step, ...]:
    """The steps of `features`, each of which has a masked form."""
    steps = []
    try:
        graph = _Tracer().trace(encoder)
    except (RuntimeError, TypeError, ValueError) as error:
        what = type(encoder).__name__
        raise UsageError(
            f"{what} depends on the sizes of its maps, so it has no masked form", "take another net"
        ) from error
    for node in graph.nodes:
        target: Any = node.target
        if node.op == "call_module":
            part = encoder.get_submodule(target)
            lawful = isinstance(part, (*_MASKED, *POINTWISE_MODULES)) and not _odd(part)
            what = type(part).__name__
        elif node.op == "call_function":
            gaps = node.kwargs.get("dilation", 1) not in (1, (1, 1), (1, 1, 1))
            lawful = target in POINTWISE_FUNCTIONS or (
                target in MAX_POOLS
                and not (gaps or node.kwargs.get("ceil_mode") or node.kwargs.get("return_indices"))
            )
            what = getattr(target, "__name__", str(target))
        else:
            lawful = node.op != "call_method" or target in POINTWISE_METHODS
            what = str(target)
        if not lawful:
            raise UsageError(f"{what} of the encoder has no masked form", "take another net")
        arguments, options = _stored(node.args), _stored(node.kwargs)
        steps.append(_Step(node.op, node.name, target, arguments, options))
    return tuple(steps)


def _odd(part: nn.Module) -> bool:
    """Whether a layer does what its masked form does not: other padding, gaps, other sizes."""
    if isinstance(part, nn.Conv2d | nn.Conv3d):
        return part.padding_mode != "zeros" or isinstance(part.padding, str)
    if isinstance(part, nn.MaxPool2d | nn.MaxPool3d):
        return part.dilation not in (1, (1, 1), (1, 1, 1)) or part.ceil_mode or part.return_indices
    if isinstance(part, nn.AvgPool2d | nn.AvgPool3d):
        return part.ceil_mode
    if isinstance(part, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        return part.output_size not in (1, (1, 1), (1, 1, 1))
    return False


def _stored(tree: Any) -> Any:
    """Arguments of a node, with names for the results of others."""
    if isinstance(tree, fx.Node):
        return _Known(tree.name)
    if isinstance(tree, (tuple, list)):
        return tuple(_stored(one) for one in tree)
    if isinstance(tree, dict):
        return {key: _stored(one) for key, one in tree.items()}
    if isinstance(tree, slice):
        return slice(_stored(tree.start), _stored(tree.stop), _stored(tree.step))
    return tree


def _filled(tree: Any, known: dict[str, Any]) -> Any:
    """The same with the results themselves."""
    if isinstance(tree, _Known):
        return known[tree.name]
    if isinstance(tree, tuple):
        return tuple(_filled(one, known) for one in tree)
    if isinstance(tree, dict):
        return {key: _filled(one, known) for key, one in tree.items()}
    return tree


def _pointwise(step: _Step, arguments: Any, options: Any) -> Any:
    """A function of single sites, after its maps were brought into one form."""
    maps = [one for one in arguments if isinstance(one, Sites)]
    if len({one.tiled for one in maps}) > 1:
        arguments = tuple(one.whole() if isinstance(one, Sites) else one for one in arguments)
        maps = [one for one in arguments if isinstance(one, Sites)]
    plain = tuple(one.x if isinstance(one, Sites) else one for one in arguments)
    if step.kind == "call_method":
        result = getattr(plain[0], step.target)(*plain[1:], **options)
    else:
        result = step.target(*plain, **options)
    return maps[0].like(result) if maps and isinstance(result, Tensor) else result


def _module(part: nn.Module, x: Sites, *rest: Any) -> Sites:
    if isinstance(part, BatchNorm | GroupNorm | LayerNorm):
        return x.normed(part)
    if isinstance(part, nn.Conv2d | nn.Conv3d):
        return _conv(part, x)
    if isinstance(part, nn.MaxPool2d | nn.MaxPool3d):
        return _max_pool(x, part.kernel_size, part.stride, part.padding)
    if isinstance(part, nn.AvgPool2d | nn.AvgPool3d):
        return _mean_pool(part, x)
    if isinstance(part, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        return _global_mean(x)
    return x.like(part(x.x, *rest))


_MASKED = (
    *(BatchNorm, GroupNorm, LayerNorm, nn.Conv2d, nn.Conv3d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)


def _conv(part: nn.Conv2d | nn.Conv3d, x: Sites) -> Sites:
    size = tuple((n - 1) * d + 1 for n, d in zip(part.kernel_size, part.dilation, strict=True))
    padding = part.padding
    assert not isinstance(padding, str)
    rim = _rim(x, size, part.stride, padding)
    if rim is None:
        return Sites(part(x.dense()), x.pattern, tiled=False)
    conv = functional.conv2d if isinstance(part, nn.Conv2d) else functional.conv3d
    padded = with_rim(x, rim, 0.0)
    y = conv(padded, part.weight, part.bias, part.stride, 0, part.dilation, part.groups)
    return x.like(y)


def _max_pool(
    x: Sites,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None = None,
    padding: int | tuple[int, ...] = 0,
    **_: Any,
) -> Sites:
    """The largest value, where hidden sites are 0 and those beyond the image do not count."""
    axes = x.x.ndim - 2
    size, step, pad = (
        _each(n, axes) for n in (kernel_size, kernel_size if stride is None else stride, padding)
    )
    pool = functional.max_pool2d if axes == 2 else functional.max_pool3d
    rim = _rim(x, size, step, pad)
    if rim is None:
        return Sites(pool(x.dense(), size, step, pad), x.pattern, tiled=False)
    return x.like(pool(with_rim(x, rim, -math.inf), size, step))


def _mean_pool(part: nn.AvgPool2d | nn.AvgPool3d, x: Sites) -> Sites:
    axes = x.x.ndim - 2
    size, step, pad = (_each(n, axes) for n in (part.kernel_size, part.stride, part.padding))
    rim = _rim(x, size, step, pad)
    if rim is None or any(any(side) for side in rim):
        return Sites(part(x.dense()), x.pattern, tiled=False)
    return x.like(part(x.x))


def _global_mean(x: Sites) -> Sites:
    """The mean over seen sites, (B, C, 1, ...), or the same for each tile of an image."""
    axes = tuple(range(2, x.x.ndim))
    if x.tiled:
        parts = x.pattern.parts
        mean = x.x.mean(axes, keepdim=True).unflatten(0, (-1, parts)).mean(1)
        return x.like(mean.repeat_interleave(parts, 0))
    mask = x.mask
    if mask is None:
        return x.like(x.x.mean(axes, keepdim=True))
    return x.like((x.x * mask).sum(axes, keepdim=True) / mask.sum(axes, keepdim=True))


def _rim(
    x: Sites, size: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Rim | None:
    """What a layer reads of the neighbours of a tile; None where whole maps must serve."""
    if not x.tiled:
        return None
    sides = x.x.shape[2:]
    rim = tuple(
        (pad, max(n - step - pad, 0)) for n, step, pad in zip(size, stride, padding, strict=True)
    )
    small = any(any(one) for one in rim) and min(sides) <= x.pattern.smallest
    beyond = any(max(one) > side for one, side in zip(rim, sides, strict=True))
    uneven = any(side % step for side, step in zip(sides, stride, strict=True))
    # A layer whose maps are not the input's over the stride would let tiles drift apart.
    shrinks = any(
        (side + sum(one) - n) // step + 1 != side // step
        for side, one, n, step in zip(sides, rim, size, stride, strict=True)
    )
    return None if small or beyond or uneven or shrinks else rim


def _each(n: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    return (n,) * axes if isinstance(n, int) else tuple(n)
