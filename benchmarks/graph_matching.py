"""Second-order graph matching: what solvers reach and take, and what is learnt through them.

Solvers: 16 pairs of graphs of 16 vertices with 5 edges from each to its nearest in 8 dimensions,
affinities of vertices and of pairs of edges from the Gumbel law, and 16 pairs of 8 vertices with 3
edges for the exact optimum (HiGHS, mixed-integer programme). RRWM and IPFP are those of pygmtools,
where it is installed. CPU time of this process, the best of three.

`--learn`: encoders of equal size see the same batches of neighbouring slices of 40 generated
volumes for the same number of steps, with seeds 0, 1, 2. Of 16 neighbouring slices of volumes that
were not learnt from (12 generated ones, and the real ones of the data folder) two views each are
embedded; counted are the slices whose second view is the most similar one by cosine.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _table import arguments, show
from scipy.ndimage import gaussian_filter
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor
from torch.nn.functional import normalize

from medssl.config import Crops, Train
from medssl.core.batch import Views
from medssl.core.random import stream
from medssl.data.sampler import Plan
from medssl.data.store import Made, Store, write_store
from medssl.data.views import Cut, Cutter, Source, assembled, items
from medssl.engine.fit import fit
from medssl.io.read import read
from medssl.method import Encoder
from medssl.nets import resnet
from medssl.nets.matching import assign, auction, frank_wolfe, value_of
from medssl.pretrain import lvm_med, simclr

REAL = ("ct/volume/example_ct.nii.gz", "mr/chris_t1.nii.gz", "mr/MR_Gd.nii.gz")
RUN = 16
"""Neighbouring slices."""
Solver = Callable[["Graphs"], Tensor]


class Graphs(NamedTuple):
    """Pairs of graphs, as `frank_wolfe` takes them."""

    c_v: Tensor
    c_e: Tensor
    e_s: Tensor
    e_t: Tensor


def pairs(count: int, n: int, k: int, seed: int) -> Graphs:
    """Random graphs with random affinities."""
    generator = stream(seed, f"graphs/{n}")

    def gumbel(*shape: int) -> Tensor:
        u = torch.rand(shape, generator=generator).clamp_min(1e-30)
        return -(-u.log()).log()

    def edges() -> Tensor:
        z = torch.randn(count, n, 8, generator=generator)
        far = torch.cdist(z, z) + 1e9 * torch.eye(n)
        heads = far.topk(k, largest=False).indices
        tails = torch.arange(n)[:, None].expand_as(heads)
        return torch.stack([tails, heads], -1).flatten(1, 2)

    return Graphs(gumbel(count, n, n), gumbel(count, n * k, n * k), edges(), edges())


def two_opt(graphs: Graphs, start: Tensor) -> Tensor:
    """Swap two vertices of a matching as long as that is worth something, the best swap first."""
    n = graphs.c_v.shape[-1]
    i, j = torch.triu_indices(n, n, 1)
    found = []
    for k in range(len(start)):
        one = Graphs(*(x[k : k + 1].expand(len(i), *x.shape[1:]) for x in graphs))
        p = start[k]
        worth = value_of(*(x[:1] for x in one), p[None])[0]
        while True:
            swapped = p.repeat(len(i), 1)
            rows = torch.arange(len(i))
            swapped[rows, i], swapped[rows, j] = p[j], p[i]
            values = value_of(*one, swapped)
            if values.max() <= worth + 1e-6:
                break
            worth, p = values.max(), swapped[values.argmax()]
        found.append(p)
    return torch.stack(found)


def exact(graphs: Graphs) -> Tensor:
    """The optimum by mixed-integer linear programming, where a product of choices is a choice."""
    found = []
    for c_v, c_e, e_s, e_t in zip(*graphs, strict=True):
        n, (n_s, n_t) = len(c_v), c_e.shape
        n_x, n_y = n * n, n_s * n_t
        cost = -np.concatenate([c_v.flatten(), c_e.flatten()]).astype(float)
        rows, lower, upper = [], [], []

        def add(row: np.ndarray, low: float, high: float) -> None:
            rows.append(row)
            lower.append(low)
            upper.append(high)

        for axis in range(2):
            for i in range(n):
                row = np.zeros(n_x + n_y)
                row[:n_x].reshape(n, n)[(i, slice(None)) if axis == 0 else (slice(None), i)] = 1
                add(row, 1, 1)
        for s, (i, j) in enumerate(e_s.tolist()):
            for t, (a, b) in enumerate(e_t.tolist()):
                y = n_x + s * n_t + t
                tail, head, both = np.zeros((3, n_x + n_y))
                tail[[y, i * n + a]] = 1, -1
                head[[y, j * n + b]] = 1, -1
                both[[y, i * n + a, j * n + b]] = -1, 1, 1
                add(tail, -np.inf, 0)
                add(head, -np.inf, 0)
                add(both, -np.inf, 1)
        solved = milp(
            cost,
            constraints=LinearConstraint(np.array(rows), lower, upper),
            bounds=Bounds(0, 1),
            integrality=np.concatenate([np.ones(n_x), np.zeros(n_y)]),
        )
        found.append(torch.from_numpy(solved.x[:n_x].reshape(n, n).argmax(1)))
    return torch.stack(found)


def peers() -> dict[str, Solver]:
    """Solvers of pygmtools, each with its matching rounded by the Hungarian method."""
    try:
        import pygmtools
    except ImportError:
        return {}
    pygmtools.set_backend("pytorch")

    def solver(name: str) -> Solver:
        def solve(graphs: Graphs) -> Tensor:
            n = graphs.c_v.shape[-1]
            k = dense(graphs)
            soft = getattr(pygmtools, name)(
                k, torch.tensor([n] * len(k)), torch.tensor([n] * len(k))
            )
            return pygmtools.hungarian(soft).argmax(2)

        return solve

    return {f"pygmtools {name.upper()}": solver(name) for name in ("rrwm", "ipfp")}


def dense(graphs: Graphs) -> Tensor:
    """The affinities as one matrix of pairs (a, i), (b, j), in the order of pygmtools."""
    c_v, c_e, e_s, e_t = graphs
    n_graphs, n = c_v.shape[:2]
    k = torch.zeros(n_graphs, n, n, n, n)
    for g in range(n_graphs):
        (i, j), (a, b) = e_s[g].T, e_t[g].T
        k[g, a[None], i[:, None], b[None], j[:, None]] = c_e[g]
    k = k.flatten(3, 4).flatten(1, 2)
    k.diagonal(dim1=1, dim2=2).add_(c_v.mT.flatten(1))
    return k


def timed(solve: Solver, graphs: Graphs) -> tuple[Tensor, float]:
    """A matching, and the CPU seconds of the fastest of three runs."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        found = solve(graphs)
        taken.append(time.process_time() - start)
    return found, min(taken)


def solvers() -> list[dict[str, object]]:
    """Each solver on both kinds of graphs."""

    def ours(n_iter: int, starts: int) -> Solver:
        return lambda graphs: frank_wolfe(*graphs, n_iter, starts)

    every: dict[str, Solver] = {
        "assign (scipy), vertices alone": lambda graphs: assign(graphs.c_v),
        "auction (torch), vertices alone": lambda graphs: auction(graphs.c_v),
        "Frank-Wolfe, 5 steps, 2 starts (default)": ours(5, 2),
        "Frank-Wolfe, 15 steps, 2 starts": ours(15, 2),
        "Frank-Wolfe, 15 steps, then 2-opt": lambda g: two_opt(g, frank_wolfe(*g, 15, 2)),
        **peers(),
    }
    large, small = pairs(16, 16, 5, 0), pairs(16, 8, 3, 0)
    best = value_of(*small, exact(small))
    rows = []
    for name, solve in every.items():
        found, seconds = timed(solve, large)
        share = value_of(*small, solve(small)) / best
        rows.append(
            {
                "solver": name,
                "objective, n = 16": round(float(value_of(*large, found).mean()), 1),
                "ms": round(1e3 * seconds, 1),
                "share of optimum, n = 8: mean": round(float(share.mean()), 3),
                "least": round(float(share.min()), 3),
            }
        )
    return rows


def anatomy(seed: int) -> np.ndarray:
    """(64, 64, 32) soft random organs in air, in units like those of a CT, with noise."""
    chance = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (64, 64, 32)], indexing="ij")
    radius = np.hypot(axes[0] / chance.uniform(0.7, 0.95), axes[1] / chance.uniform(0.6, 0.9))
    image = np.full(radius.shape, 0.0)
    for width, value in ((7, 120), (6, -90), (5, 200), (4, -150), (3, 400)):
        field = gaussian_filter(chance.standard_normal(image.shape), (width, width, 0.6 * width))
        image += value / (1 + np.exp(-8 * (field / field.std() - 0.7)))
    image = np.where(radius < 1, image, -1000) + chance.normal(0, 15, image.shape)
    return image.astype(np.int16)


def volumes(folder: Path, data: Path) -> Store:
    """40 generated volumes to learn from, 12 to test on, and the real ones."""

    def made() -> Iterator[Made]:
        for k in range(52):
            split = "train" if k < 40 else "val"
            yield Made(
                image=anatomy(k)[None],
                key=f"{k:032x}",
                modality="CT",
                spacing=(4.0, 4.0, 4.0),
                split=split,
            )
        for k, name in enumerate(REAL):
            if (data / name).is_file():
                scan = read(data / name)
                yield Made(
                    image=np.asarray(scan.data),
                    key=f"{100 + k:032x}",
                    modality="CT" if name.startswith("ct") else "MR",
                    split="test",
                )

    return write_store(folder / "store", made())


def batches(store: Store, steps: int, runs: int, seed: int) -> Iterator[Views]:
    """Of runs of neighbouring slices, the same whatever learns from them."""
    cutter, found = _cutter(store, "train", seed)
    plan = Plan(seed, len(found), runs, 0, 1)
    for step in range(steps):
        drawn = plan.batch(step)
        samples = [s for d in drawn for s in cutter.sample(found[d.index], str(d.place))]
        yield assembled(samples, stream(seed, f"loss/{step}"), step / steps, torch.device("cpu"))


def unseen(store: Store, split: str) -> list[Views]:
    """Runs of neighbouring slices to test on, one of each volume or stretch of it."""
    cutter, found = _cutter(store, split, 99)
    here = torch.device("cpu")
    return [
        assembled(cutter.sample(one, str(one.index)), stream(0, "unseen"), 1.0, here)
        for one in found
    ]


def top_1(method: Encoder, batches: list[Views]) -> float:
    """Share of slices whose second view is the closest of 16 neighbours."""
    right = []
    for batch in batches:
        with torch.no_grad():
            z_a, z_b = (normalize(method.embed(view)) for view in batch.views)
        right.append((z_a @ z_b.T).argmax(1) == torch.arange(RUN))
    return float(torch.cat(right).float().mean())


def _cutter(store: Store, split: str, seed: int) -> tuple[Cutter, list]:
    cut = Cut(
        axes=2, views=2, small=0, block=None, hidden=0, neighbours=RUN, stack=False, channels=1
    )
    crops = Crops(size=(32, 32), scale=(0.4, 1.0), whole=True)
    return Cutter(Source(store, 1 << 28), cut, crops, seed), items(store, split, cut, crops)


class Strangers(simclr.SimCLR):
    """SimCLR that takes neighbouring slices for strangers."""

    def loss(self, batch: Views) -> dict[str, Tensor]:
        """NT-Xent over all images."""
        return super().loss(replace(batch, patient=None))


def learnt(data: Path, steps: int) -> list[dict[str, object]]:
    """What encoders tell apart after equal steps."""
    net = resnet.Config(width=8, depths=(1, 1, 1), bottleneck=False, stem="small")

    def lvm(order: int) -> Encoder:
        return lvm_med.Config(
            net=net, graph_mix="volume", small=0, order=2 if order == 2 else 1
        ).build()

    contrastive = simclr.Config(net=net, out=64)
    every: dict[str, Callable[[], Encoder]] = {
        "untrained": lambda: lvm(2),
        "LVM-Med": lambda: lvm(2),
        "LVM-Med, vertices alone (assign)": lambda: lvm(1),
        "NT-Xent, slices of a patient no strangers": lambda: contrastive.build(),
        "NT-Xent, neighbouring slices strangers": lambda: Strangers(
            contrastive, contrastive.net.build()
        ),
    }
    train = Train(steps=steps, lr=1e-3, optimiser="adamw", weight_decay=0.01, schedule="cosine")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = volumes(Path(folder), data)
        tests = {s: unseen(store, s) for s in ("val", "test")}
        splits = [s for s in tests if tests[s]]
        for name, build in every.items():
            scores: dict[str, list[float]] = {s: [] for s in splits}
            start = time.process_time()
            for seed in range(3):
                torch.manual_seed(seed)
                method = build()
                if name != "untrained":
                    fit(method, batches(store, steps, 2, seed), train)
                method.eval()
                for split in splits:
                    scores[split].append(top_1(method, tests[split]))
            row: dict[str, object] = {"method": name}
            for split, title in (("val", "generated"), ("test", "real")):
                if split in scores:
                    each = scores[split]
                    row[f"top-1, {title}"] = f"{statistics.mean(each):.3f}"
                    row[f"seeds, {title}"] = " ".join(f"{v:.3f}" for v in each)
            row["CPU s"] = round(time.process_time() - start)
            rows.append(row)
    return rows


def main() -> None:
    """Print one of the tables and write it beside this file."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--learn", action="store_true", help="train encoders (minutes)")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.learn:
        rows = learnt(options.data, options.steps)
        protocol = f"Top-1 among {RUN} neighbouring slices after {options.steps} steps of 32 slices"
        show("graph_matching_learn", protocol, rows, as_json=options.json)
        return
    rows = solvers()
    show("graph_matching", "16 pairs of graphs, Gumbel affinities", rows, as_json=options.json)


if __name__ == "__main__":
    main()
