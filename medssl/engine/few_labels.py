r"""Does pretraining help to segment with few labels, at equal compute?

Three arms learn from the same labelled images, with the same seed, and keep the weights that did
best on validation images:

A. random weights, F steps;
B. random weights, F steps and as many more as the floating point operations of the pretraining pay
   for, with a schedule of that length;
C. pretrained weights, F steps.

What counts is C - A and, for the question whether the pretraining was worth its time, C - B. Dice
is that of all test images of a group together, its mean taken over the classes there are.
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.flop_counter import FlopCounterMode

from medssl.config import Crops, Train
from medssl.core.batch import Views
from medssl.core.errors import InputError, UsageError
from medssl.core.progress import Progress
from medssl.core.random import stream
from medssl.data.views import filled_up, pattern
from medssl.engine.device import Machine
from medssl.engine.embed import starts
from medssl.engine.encoders import LoadedEncoder
from medssl.engine.fit import Fitting, go_on
from medssl.engine.label_maps import Case
from medssl.engine.probe import ALL, RANDOM, Report, Row, doubts
from medssl.method import Encoder, Method
from medssl.metrics.interval import interval
from medssl.nets.feature_unet import FeatureUNet

ARMS = ("A scratch", "B scratch, compute of C", "C pretrained")
BATCH = {2: 8, 3: 2}
"""Crops in a step, by axes."""
LOOKS = 10
"""At the validation images, evenly over the steps."""
VALIDATED = 8
"""Images that are looked at, at most."""
COUNTED = 32
"""Images of a pretraining batch whose operations are counted; the rest is in proportion."""
LR = 1e-3
SHARE_FULL = 0.5
"""Of the crops that are laid around a labelled voxel."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be found out."""

    labelled: tuple[int, ...] = (5, 20, ALL)
    """Images (slices, or volumes of encoders of three axes) that are learnt from."""
    steps: int = 200
    """F."""
    seeds: int = 5
    """Draws of labels and fine-tunings with each run."""
    seed: int = 0
    longer: bool = True
    """Whether arm B is trained."""


@dataclass(frozen=True)
class Compute:
    """What arm B is given."""

    pretraining: int
    """Floating point operations of all steps of the pretraining."""
    step: int
    """Of a step of the fine-tuning."""
    steps: int
    """That the pretraining pays for."""

    @classmethod
    def of(cls, loaded: LoadedEncoder, net: "Segmenter") -> "Compute":
        """Count them with torch's counter."""
        total = pretraining_flops(loaded)
        step = _step_flops(net, loaded)
        return cls(total, step, round(total / step))

    @property
    def share(self) -> float:
        """Operations of arm B beyond F steps over those of the pretraining."""
        return self.steps * self.step / self.pretraining


def segment(
    runs: Sequence[LoadedEncoder],
    cases: Sequence[Case],
    asked: Asked,
    machine: Machine,
    tell: Progress,
) -> Report:
    """Fine-tune all arms and score them on groups that none of them saw.

    Args:
        runs: Pretrainings of one recipe with different seeds.
        cases: Labelled images.
        asked: What is to be found out.
        machine: Where it runs.
        tell: Told how far it is.

    Raises:
        UsageError: Numbers that cannot be.
        InputError: Too few groups or classes.
    """
    if asked.steps < 1 or asked.seeds < 1 or min(asked.labelled, default=1) < 0:
        raise UsageError(f"{asked.steps} steps and {asked.seeds} seeds", "give numbers from 1 on")
    n_classes = max((int(c.label.max()) for c in cases), default=0) + 1
    if n_classes < 2:
        raise InputError("the label maps are empty", "mark something in them")
    parted = [_parted(cases, asked.seed + k) for k in range(asked.seeds)]
    most = max(len(p.learn) for p in parted)
    wanted = [n for n in asked.labelled if n == ALL or n < most] or [ALL]
    arms = [a for a in ARMS if asked.longer or a != ARMS[1]]
    net = _net(runs[0].method, runs[0], n_classes, 0)
    compute = Compute.of(runs[0], net) if asked.longer else None
    work = list(itertools.product(wanted, range(len(runs)), range(asked.seeds), arms))
    n_groups = max(c.group for c in cases) + 1
    shape = (len(runs), asked.seeds, n_groups, n_classes - 1)
    dice = {(n, a): np.zeros(shape) for n in wanted for a in arms}
    there = {n: np.zeros(shape) for n in wanted}
    for done, (n, p, k, arm) in enumerate(work):
        tell("fine-tune", done, len(work))
        steps = asked.steps + (compute.steps if compute and arm == ARMS[1] else 0)
        method = runs[p].method
        if arm != ARMS[2]:
            method = runs[p].untrained(RANDOM + 1000 * p + k)
        made = _net(method, runs[p], n_classes, asked.seed + k)
        part = parted[k].few(n, asked.seed + k)
        fine_tuned(made, part, runs[p].crops, steps, machine, f"{asked.seed + k}/{n}")
        found, known = _dice(made, part.test, runs[p].crops, n_groups, machine.device)
        dice[n, arm][p, k], there[n][p, k] = found, known
    tell("fine-tune", len(work), len(work))
    rows = []
    rng = np.random.default_rng(asked.seed)
    for n in wanted:
        rows += _rows({a: dice[n, a] for a in arms}, there[n], n, rng)
    facts: dict[str, Any] = {
        "arms": dict.fromkeys(arms, len(runs)),
        "draws": asked.seeds,
        "rows": len(cases),
        "groups": n_groups,
        "classes": n_classes - 1,
        "steps": asked.steps,
    }
    if compute is not None:
        facts |= {
            "pretraining_flops": compute.pretraining,
            "step_flops": compute.step,
            "steps_of_b": asked.steps + compute.steps,
            "share_of_pretraining": compute.share,
        }
    warnings = doubts(len(runs))
    if compute is not None and abs(compute.share - 1) > 0.02:
        warnings.append(
            f"arm B has {compute.share:.0%} of the operations of the pretraining: a step of it is "
            "too large to divide them"
        )
    return Report(tuple(rows), facts, tuple(warnings))


def pretraining_flops(loaded: LoadedEncoder) -> int:
    """Floating point operations of all steps of a pretraining, forwards and backwards.

    Args:
        loaded: Its recipe says how many steps of how many images.
    """
    train = loaded.recipe.train
    assert train is not None
    method = loaded.untrained(0).train()
    n = min(train.batch, max(COUNTED, method.sees.neighbours))
    batch = _made_up(method, loaded.crops, loaded.channels, n)
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(method.loss(batch).values())).sum().backward()
    return round(counter.get_total_flops() * train.batch / n) * train.steps


def _made_up(method: Encoder, crops: Crops, channels: int, n: int) -> Views:
    """A batch of noise of the shapes that a method learns from."""
    sees, generator = method.sees, stream(0, "count")

    def noise(size: tuple[int, ...]) -> Tensor:
        return torch.randn(n, channels, *size, generator=generator)

    visible = None
    if sees.block is not None:
        cells = tuple(a // b for a, b in zip(crops.size, sees.block, strict=True))
        visible = torch.stack([pattern(cells, sees.hidden, generator) for _ in range(n)])
    box = torch.stack([torch.zeros(sees.axes), torch.tensor(crops.size, dtype=torch.float32)])
    depth = torch.arange(crops.size[-1], dtype=torch.float32)
    return Views(
        image=noise(crops.size),
        valid=torch.ones(n, 1, *crops.size, dtype=torch.bool),
        visible=visible,
        views=tuple(noise(crops.size) for _ in range(sees.views)),
        small=tuple(noise(crops.small_size or crops.size) for _ in range(sees.small)),
        boxes=box.expand(sees.views + sees.small, n, 2, sees.axes) if sees.views else None,
        index=torch.arange(n),
        patient=torch.arange(n),
        spacing=torch.ones(n, sees.axes),
        slice_mm=depth.expand(n, -1) if sees.stack else None,
        generator=generator,
    )


@dataclass(frozen=True, eq=False)
class Parted:
    """Cases by what they are for."""

    learn: Sequence[Case]
    check: Sequence[Case]
    test: Sequence[Case]

    def few(self, n: int, seed: int) -> "Parted":
        """With so many images that are learnt from."""
        if n == ALL:
            return self
        order = np.random.default_rng([seed, n]).permutation(len(self.learn))[:n]
        return dataclasses.replace(self, learn=[self.learn[k] for k in order])


def _parted(cases: Sequence[Case], seed: int) -> Parted:
    """A third of the groups is tested on, a sixth validated on; known splits are kept.

    Raises:
        InputError: There are not three groups.
    """
    names = np.unique([c.group for c in cases])
    rng = np.random.default_rng(seed)
    sides = [[c for c in cases if c.split == s] for s in ("train", "val", "test")]
    if all(sides):
        return Parted(*sides)
    if len(names) < 3:
        raise InputError(
            f"the label maps are of {len(names)} patients or groups",
            "give three: to learn from, to validate, to test",
        )
    order = rng.permutation(names)
    n_test, n_check = max(1, round(len(names) / 3)), max(1, round(len(names) / 6))
    test, check = set(order[:n_test]), set(order[n_test : n_test + n_check])
    return Parted(
        [c for c in cases if c.group not in test | check],
        [c for c in cases if c.group in check],
        [c for c in cases if c.group in test],
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """One step: crops and their label maps."""

    image: Tensor
    label: Tensor


class Segmenter(Method[_Drawn]):
    """Cross entropy and Dice, half each."""

    def __init__(self, net: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.net, self.n_classes = net, n_classes

    def loss(self, batch: _Drawn) -> dict[str, Tensor]:
        """Two terms."""
        logits = self.net(batch.image)
        truth = one_hot(batch.label, self.n_classes).movedim(-1, 1).to(logits)
        axes = (0, *range(2, logits.ndim))
        p = logits.softmax(1)
        overlap = (2 * (p * truth).sum(axes) + 1) / ((p + truth).sum(axes) + 1)
        return {
            "cross_entropy": cross_entropy(logits, batch.label),
            "dice": 1 - overlap[1:].mean(),
        }


def _net(method: Encoder, loaded: LoadedEncoder, n_classes: int, seed: int) -> Segmenter:
    """A fresh decoder on a copy of an encoder."""
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global one
        torch.manual_seed(seed)
        encoder = copy.deepcopy(method.encoder).cpu()
        net = FeatureUNet(encoder, method.sees.axes, loaded.channels, n_classes)
    return Segmenter(net.requires_grad_(), n_classes)


def _step_flops(method: Segmenter, loaded: LoadedEncoder) -> int:
    n, size = BATCH[loaded.method.sees.axes], loaded.crops.size
    image = torch.zeros(n, loaded.channels, *size)
    image[..., ::2] = 1
    batch = _Drawn(image, torch.zeros(n, *size, dtype=torch.long))
    counted = copy.deepcopy(method).train()
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(counted.loss(batch).values())).sum().backward()
    return int(counter.get_total_flops())


def fine_tuned(
    method: Segmenter, part: Parted, crops: Crops, steps: int, machine: Machine, name: str
) -> None:
    """Learn from labelled images; the best weights on the validation images are kept."""
    method.to(machine.device)
    train = Train(
        steps=steps,
        lr=LR,
        optimiser="adamw",
        weight_decay=1e-2,
        schedule="cosine",
        warmup=steps // 10,
        clip=12.0,
        check_every=max(1, steps // LOOKS),
    )
    some = part.check[:: max(1, len(part.check) // VALIDATED)][:VALIDATED]
    n_groups = max(c.group for c in some) + 1

    def score() -> float:
        found, known = _dice(method, some, crops, n_groups, machine.device)
        return -float(found[known > 0].mean()) if known.any() else 0.0

    go_on(Fitting(method, train, score=score), _batches(part, crops, steps, machine, name))


def _batches(
    part: Parted, crops: Crops, steps: int, machine: Machine, name: str
) -> Iterator[_Drawn]:
    axes = part.learn[0].label.ndim
    for step in range(steps):
        generator = stream(0, f"crops/{name}/{step}")
        drawn = [_crop(part.learn, crops, generator) for _ in range(BATCH[axes])]
        yield _Drawn(
            torch.stack([d.image for d in drawn]).to(machine.device),
            torch.stack([d.label for d in drawn]).to(machine.device),
        )


def _crop(cases: Sequence[Case], crops: Crops, generator: torch.Generator) -> _Drawn:
    """A crop of a random case, half of them around a labelled voxel, flipped by chance."""

    def below(n: int) -> int:
        return int(torch.randint(max(1, n), (), generator=generator))

    case = cases[below(len(cases))]
    at = [below(n) for n in case.label.shape]
    if float(torch.rand((), generator=generator)) < SHARE_FULL:
        marked = case.label.nonzero()
        if len(marked):
            at = marked[below(len(marked))].tolist()
    part = []
    for centre, size, side in zip(at, crops.size, case.label.shape, strict=True):
        start = min(max(0, centre - below(size)), max(0, side - size))
        part.append(slice(start, start + size))
    image, label = case.image[(slice(None), *part)], case.label[tuple(part)]
    image, label = filled_up(image, crops.size), filled_up(label[None], crops.size)[0]
    turned = [
        k for k in range(label.ndim) if float(torch.rand((), generator=generator)) < crops.flip
    ]
    return _Drawn(image.flip([k + 1 for k in turned]), label.flip(turned))


@torch.no_grad()
def _dice(
    method: Segmenter,
    cases: Sequence[Case],
    crops: Crops,
    n_groups: int,
    device: torch.device,
) -> tuple[Floats, Floats]:
    """Dice (n_groups, classes) of each group, and 1 where the truth has the class."""
    method.eval()
    both = np.zeros((n_groups, method.n_classes - 1))
    sums, truth = np.zeros_like(both), np.zeros_like(both)
    for case in cases:
        guess = _guess(method, case.image, crops, device)
        for c in range(1, method.n_classes):
            a, b = guess == c, case.label == c
            both[case.group, c - 1] += float((a & b).sum())
            sums[case.group, c - 1] += float(a.sum() + b.sum())
            truth[case.group, c - 1] += float(b.sum())
    return 2 * both / np.maximum(sums, 1), (truth > 0).astype(np.float64)


def _guess(method: Segmenter, image: Tensor, crops: Crops, device: torch.device) -> Tensor:
    """(*S) the class of each voxel: mean over windows that overlap by half."""
    sides = image.shape[1:]
    total = torch.zeros(method.n_classes, *sides)
    corners = itertools.product(
        *(starts(0, n, min(s, n), n, 0.5) for n, s in zip(sides, crops.size, strict=True))
    )
    parts = [
        tuple(slice(a, min(a + s, n)) for a, s, n in zip(corner, crops.size, sides, strict=True))
        for corner in corners
    ]
    n = BATCH[len(sides)]
    for some in (parts[k : k + n] for k in range(0, len(parts), n)):
        windows = [filled_up(image[(slice(None), *part)], crops.size) for part in some]
        guesses = method.net(torch.stack(windows).to(device)).softmax(1).cpu()
        for part, p in zip(some, guesses, strict=True):
            inside = tuple(slice(0, s.stop - s.start) for s in part)
            total[(slice(None), *part)] += p[(slice(None), *inside)]
    return total.argmax(0)


def _rows(dice: Mapping[str, Floats], there: Floats, n: int, rng: np.random.Generator) -> list[Row]:
    labels = "all" if n == ALL else str(n)
    found = [
        Row("segment", labels, arm, "dice", interval(values * there, there, rng))
        for arm, values in dice.items()
    ]
    *others, ours = dice
    for arm in others:
        gain = interval((dice[ours] - dice[arm]) * there, there, rng)
        found.append(Row("segment", labels, f"gain over {arm[0]}", "dice", gain))
    return found
