r"""Attention over the slices of a volume, at places that it chooses, in mm.

Queries are all slices; those at every r-th one also say where to look, at :math:`z + s \tanh o`.
Keys and values come from the tokens there, interpolated linearly between slices, and attention
has a bias that knows the signed distance, from :math:`\mathrm{sign}(d) \log(1 + |d| / u)`, u a
length of 1 mm.

Departs from the papers: slices are tokens, so that any number of them will do, wherever they lie.
Reference: Xia, Pan, Song, Li, Huang. Vision Transformer with Deformable Attention. CVPR 2022; over
slices: Nguyen et al. Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter
Contrastive Clustering. AAAI 2023.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


@dataclass(frozen=True, kw_only=True)
class Config:
    """Width and depth."""

    width: int = 640
    """Channels of a token."""
    hidden: int = 720
    """Channels within the layers that see one token at a time."""
    layers: int = 4
    heads: int = 8
    """Of the attention; each looks at places of its own."""
    every: int = 4
    """Slices from one that says where to look to the next."""
    reach: float = 20.0
    """s, mm: how far from its own place a slice may look."""
    unit: float = 1.0
    """u, mm: differences of distance below it matter little."""
    dropout: float = 0.1

    def build(self) -> "SliceTransformer":
        """The network, untrained."""
        return SliceTransformer(self)


class SliceTransformer(nn.Module):
    """Tokens of slices in, tokens that know of the other slices out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(
        self,
        x: Tensor,
        z: Tensor,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Look along the slices.

        Args:
            x: (B, N, width) tokens.
            z: (B, N) ascending positions of the slices, mm.
            valid: (B, N) bool, False where there is no slice, from some slice on; None where all
                are.
            generator: Draws the dropout; None drops nothing.

        Returns:
            (B, N, width).
        """
        valid = torch.ones_like(z, dtype=torch.bool) if valid is None else valid
        for layer in self.layers:
            x = layer(x, z, valid, generator if self.training else None)
        return x


class Layer(nn.Module):
    """Attention, then a layer for each token; a sum and a norm after each."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention = DeformableAttention(config)
        self.norm_1, self.norm_2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.wide = nn.Linear(config.width, config.hidden)
        self.narrow = nn.Linear(config.hidden, config.width)

    def forward(
        self, x: Tensor, z: Tensor, valid: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """As `SliceTransformer.forward`."""
        seen = self.attention(x, z, valid)
        x = dropped(self.norm_1(x + seen), self.dropout, generator)
        return self.norm_2(x + self.narrow(gelu(self.wide(x))))


class DeformableAttention(nn.Module):
    """Attention of all slices to tokens between slices."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.offset = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, heads))
        self.bias = nn.Sequential(nn.Linear(1, 4 * heads), nn.GELU(), nn.Linear(4 * heads, heads))

    def forward(self, x: Tensor, z: Tensor, valid: Tensor) -> Tensor:
        """(B, N, width) of tokens (B, N, width) at z (B, N), where valid (B, N)."""
        c, heads = self.config, self.config.heads
        query = self.query(x)
        first = z[:, :: c.every, None]
        places = first + c.reach * torch.tanh(self.offset(query[:, :: c.every]))
        q, k, v = (
            y.unflatten(2, (heads, -1)).transpose(1, 2) for y in (query, self.key(x), self.value(x))
        )
        weights = hats(places.transpose(1, 2).flatten(1), z, valid).unflatten(1, (heads, -1))
        k, v = (weights.to(y) @ y for y in (k, v))
        d = places.transpose(1, 2)[:, :, None] - z[:, None, :, None]
        far = (d.sign() * torch.log1p(d.abs() / c.unit))[..., None]
        bias = self.bias(far).diagonal(dim1=1, dim2=-1).movedim(-1, 1)
        scores = q @ k.mT / q.shape[-1] ** 0.5 + bias
        scores = scores.masked_fill(~valid[:, None, None, :: c.every], -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def hats(at: Tensor, z: Tensor, known: Tensor) -> Tensor:
    """Weights of linear interpolation between known slices, constant beyond the ends.

    A matrix instead of indices: its gradient is the same each time on a GPU too.

    Args:
        at: (B, M) positions, mm.
        z: (B, N) ascending positions of the slices.
        known: (B, N) bool; one at least of each row.

    Returns:
        (B, M, N), rows that sum to 1 and are 0 where nothing is known.
    """
    low = torch.where(known, z, torch.inf).amin(1, keepdim=True)
    high = torch.where(known, z, -torch.inf).amax(1, keepdim=True)
    before = torch.where(known, z, -torch.inf).cummax(1).values
    after = torch.where(known, z, torch.inf).flip(1).cummin(1).values.flip(1)
    left = torch.cat([torch.full_like(low, -torch.inf), before[:, :-1]], 1)
    right = torch.cat([after[:, 1:], torch.full_like(low, torch.inf)], 1)
    at = torch.minimum(torch.maximum(at, low), high)[:, :, None]
    z, left, right = (x[:, None] for x in (z, left, right))
    left = torch.where(left.isinf(), z - 1, left)
    right = torch.where(right.isinf(), z + 1, right)
    rise = (at - left) / (z - left)
    fall = (right - at) / (right - z)
    return torch.minimum(rise, fall).clamp_min(0) * known[:, None]


def dropped(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Values of which a random share is 0 and the others are larger for it.

    Args:
        x: Any shape.
        share: Of what is dropped, below 1.
        generator: The source of chance; None drops nothing.
    """
    if generator is None or share <= 0:
        return x
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return x * kept / (1 - share)
