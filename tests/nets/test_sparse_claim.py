"""What tiles are for: the time and the memory of an encoder of volumes."""

import time

import pytest
import torch
from torch import nn

from medssl.core.random import stream
from medssl.nets.norms import InstanceNorm
from medssl.nets.sparse import sparse_view

SIDE, BLOCK = 64, 16


class Five(nn.Module):
    """1-32-32-32-64(stride 2)-64, as in benchmarks/spark3d.py."""

    def __init__(self):
        super().__init__()
        layers = []
        for a, b, stride in ((1, 32, 1), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
            conv = nn.Conv3d(a, b, 3, stride=stride, padding=1)
            layers += [conv, InstanceNorm(b), nn.LeakyReLU(0.01, inplace=True)]
        self.layers = nn.Sequential(*layers)

    def features(self, image):
        return [self.layers(image)]


def kept(step):
    """Bytes that wait for the backward pass."""
    found = {}

    def pack(x):
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = step()
    assert result.requires_grad
    return sum(found.values())


@pytest.mark.paper
def test_tiles_take_a_third_of_the_time_and_half_of_the_memory():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Five()
    n = SIDE // BLOCK
    order = torch.rand(n**3, generator=stream(0, "cells")).argsort()
    seen = (order < n**3 // 4).reshape(1, 1, n, n, n)
    image = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=stream(0, "image"))
    times, memory, found = [], [], []
    for tiles in (False, True):
        view = sparse_view(encoder, tiles=tiles)
        memory.append(kept(lambda view=view: view.features(image, seen)[0]))
        start = time.process_time()
        y = view.features(image, seen)[0]
        y.sum().backward()
        times.append(time.process_time() - start)
        found.append(y.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()
    assert times[0] >= 3 * times[1], times
    assert memory[1] <= 0.5 * memory[0], memory
