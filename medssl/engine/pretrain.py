"""An encoder from a store: batches of views, one loop, weights that later work begins with."""

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medssl import config
from medssl.config import Crops
from medssl.core.batch import Sees, Views
from medssl.core.errors import InputError, UsageError
from medssl.core.progress import Progress
from medssl.core.random import stream
from medssl.core.ranks import gather, rank, wait, world
from medssl.core.run import plain, versions
from medssl.data.sampler import Draw, Plan
from medssl.data.store import Store
from medssl.data.views import Cutter, Item, Source, assembled, balanced, items
from medssl.engine.build import channels, encoder
from medssl.engine.device import Machine, deterministic
from medssl.engine.distributed import gathered
from medssl.engine.fit import Fitting
from medssl.engine.learn import (
    Journey,
    Outcome,
    Watch,
    finish,
    fitting_into_memory,
    learn,
)
from medssl.engine.stop import stopping
from medssl.engine.wanted import Wanted
from medssl.io.run_folder import RunFolder
from medssl.method import Encoder

PATIENCE = 10
"""Steps in a row that may be left out before a training ends."""
SHARE_OF_MEMORY = 0.25
"""Of what is free, for volumes in memory."""
MOST_READERS = 8
"""Threads that make images."""
AHEAD = 2
"""Batches that are made ahead."""
MOST_BANK = 1 << 17
"""Images that clusters are made of; of larger stores a random part."""
CALIBRATED_ON = 24
"""Batches that norms are calibrated on which saw images in part."""
MOST_PLAIN = 8
"""Images in one of these."""
COLLAPSED = 1e-3
"""Standard deviation of features, over their size, below which an encoder says nothing."""
SMALLER = "lower train.batch or crops.size, or raise train.accumulate with --set"


def pretrain(
    data: Path,
    wanted: Wanted,
    folder: RunFolder | None,
    machine: Machine,
    progress: Progress,
    *,
    resume: bool = False,
    watch: Watch | None = None,
) -> Outcome:
    """Pretrain an encoder on a store, in this process and those that `torchrun` started with it.

    Args:
        data: The store.
        wanted: What is to be trained.
        folder: Where the run goes; None looks at the store and writes nothing.
        machine: Where it runs.
        progress: Told how far it is.
        resume: Go on with what the folder holds, if it holds something.
        watch: Told the numbers of each step.

    Raises:
        InputError: No store, or it holds nothing to learn from.
        UsageError: The folder holds a run of something else, or numbers that cannot be.
        WeightsError: What the folder holds is damaged.
        MemoryLimitError: A step does not fit.
        QualityError: The loss is not finite ten times in a row.
        InterruptedRunError: Stopped, and saved.
        TerminatedRunError: Stopped, and saved.
    """
    store = Store.open(data)
    method, settled = encoder(wanted.recipe)
    lesson = _Lesson(store, wanted, method, settled, machine)
    with stopping() as stop:
        journey = Journey(wanted, folder, machine, progress, stop, watch)
        record: dict[str, Any] = {"wanted": wanted.as_tree(), "phase": "looking"}
        if folder is not None and resume and folder.begun:
            record = folder.record()
            wanted.refuse_another(record)
            _refuse_another_store(record, store)
            if journey.writes:
                folder.tidy()
        elif journey.writes and folder is not None:
            folder.begin(record)
        wait()
        if record.get("phase") == "complete":
            return Outcome(record, (), ("the training was complete already",))
        journey.warnings += lesson.doubts
        if record.get("phase") != "learning":
            record |= lesson.facts(wanted, settled, machine)
            if journey.writes and folder is not None:
                folder.write_recipe(config.text_of(record["recipe"]))
                folder.write_record(record)
        if folder is not None:
            _learn(journey, folder, lesson, record)
        return Outcome(record, (), tuple(journey.warnings))


def _learn(journey: Journey, folder: RunFolder, lesson: "_Lesson", record: dict[str, Any]) -> None:
    """Take the steps that are left and write the weights."""
    method, train = lesson.method, journey.wanted.train
    method.to(journey.machine.device)
    held = lesson.held()
    if held is not None:
        train = dataclasses.replace(train, check_every=train.check_every or train.save_every)
    with fitting_into_memory(SMALLER), deterministic(train.deterministic):
        fitting = Fitting(method, train, held, keep_best=False, patience=PATIENCE)
        learn(
            journey,
            folder,
            fitting,
            lesson.batches,
            record,
            before_step=lesson.before_step,
            measure=None if held is None else lambda: lesson.measured(held()),
        )
        if method.needs_calibration:
            journey.tell("calibrate", 0, 1)
            method.train()
            with torch.no_grad(), gathered(method):
                method.calibrate(lesson.plain_images(CALIBRATED_ON))
            method.eval()
        spread = lesson.spread()
    record["spread"] = spread
    if spread < COLLAPSED:
        journey.warnings.append(
            f"the encoder says the same of all images (spread {spread:.2g}), it has collapsed"
        )
    finish(journey, folder, method, record)


class _Lesson:
    """The batches of a training.

    Raises:
        UsageError: Sizes that do not fit each other.
        InputError: The store holds nothing to learn from.
    """

    def __init__(
        self,
        store: Store,
        wanted: Wanted,
        method: Encoder,
        settled: Mapping[str, Any],
        machine: Machine,
    ) -> None:
        self.store, self.method, self.machine, self.seed = store, method, machine, wanted.seed
        self.train, self.steps = wanted.train, wanted.train.steps
        assert wanted.recipe.crops is not None
        crops, sees = wanted.recipe.crops, method.sees
        _check(crops, sees, self.train.batch, self.train.accumulate)
        self.sees = sees
        self.items = items(store, "train", sees, crops)
        if not self.items:
            raise InputError(
                f"none of the {len(store.volumes)} volumes of the store can be learnt from",
                "medssl archive show INDEX lists the splits",
                file=store.path,
            )
        if sees.clusters > len(self.items):
            raise UsageError(
                f"{len(self.items)} images cannot make {sees.clusters} clusters",
                f"ask for {len(self.items)} clusters or fewer",
            )
        self.order = balanced(self.items, store) if crops.balance else self.items
        self.held_items = items(store, "val", sees, crops)
        self.cutter = Cutter(
            Source(store, int(SHARE_OF_MEMORY * machine.free_on_host)),
            sees,
            channels(settled),
            crops,
            self.seed,
        )
        part = self.train.batch // (world() * self.train.accumulate) // sees.neighbours
        self.plan = Plan(self.seed, len(self.order), part * self.train.accumulate, rank(), world())
        self.readers = min(MOST_READERS, machine.threads)
        """Threads that make images; their number changes no batch."""
        self.part = part
        """Draws of a part of the batch of this rank."""

    @property
    def doubts(self) -> list[str]:
        """What a user should know before the first step."""
        found = []
        if not self.held_items:
            found.append("the store keeps no patient for validation; no held-out loss")
        groups = {self.store.volumes[i.volume].group for i in self.items}
        if self.train.batch > len(self.items) * self.sees.neighbours:
            found.append(
                f"a batch of {self.train.batch} sees each of the {len(self.items)} images twice"
            )
        if len(groups) == 1 and self.sees.views:
            found.append("all images are of one patient, who has no strangers to differ from")
        return found

    def facts(self, wanted: Wanted, settled: dict[str, Any], machine: Machine) -> dict[str, Any]:
        """What is settled before the first step and never changes."""
        volumes = [self.store.volumes[k] for k in {i.volume for i in self.items}]
        held = {i.volume for i in self.held_items}
        return {
            "phase": "learning",
            "complete": False,
            "recipe": plain(config.as_tree(wanted.recipe, settled)),
            "store": self.store.sha256,
            "failed": 0,
            "parameters": sum(p.numel() for p in self.method.parameters()),
            "seen": {
                "learnt": len(volumes),
                "tested": len(held),
                "images": len(self.items),
                "patients": len({v.group for v in volumes}),
                "modalities": dict(Counter(v.modality for v in volumes)),
                "axes": self.sees.axes,
            },
            "device": machine.device.type,
            "threads": machine.threads,
            "processes": world(),
            "versions": versions(),
        }

    def batches(self, start: int) -> Iterator[tuple[Views, ...]]:
        """Those of the steps from `start` on, some of them made ahead."""
        ahead = 0 if self.method.sees.clusters else AHEAD
        with ThreadPoolExecutor(self.readers) as pool:
            waiting: deque[list[Future[Any]]] = deque()
            for step in range(start, self.steps):
                while len(waiting) <= ahead and step + len(waiting) < self.steps:
                    waiting.append(self._asked(pool, step + len(waiting)))
                yield self._batch(step, waiting.popleft())

    def before_step(self, step: int) -> None:
        """Make clusters anew where it is time."""
        every = self.method.refresh_every
        if every is None or step % every:
            return
        chosen = self.items
        if len(chosen) > MOST_BANK:
            generator = stream(self.seed, f"bank/{step}")
            some = torch.randperm(len(chosen), generator=generator)[:MOST_BANK]
            chosen = [self.items[k] for k in sorted(some.tolist())]
        bank, index = self._bank(chosen)
        generator = stream(self.seed, f"refresh/{step}", self.machine.device)
        with torch.no_grad():
            self.method.refresh(bank, index, generator)

    def held(self) -> Callable[[], Views] | None:
        """The batch of held-out patients that is looked at; None where there are none."""
        each = max(1, min(self.part, len(self.held_items)))
        if not self.held_items:
            return None
        n = len(self.held_items)
        mine = [self.held_items[(rank() * each + k) % n] for k in range(each)]
        samples = [
            s for k, i in enumerate(mine) for s in self.cutter.sample(i, f"held/{rank()}/{k}")
        ]
        device = self.machine.device
        return lambda: assembled(samples, stream(self.seed, "held", device), 1.0, device)

    def plain_images(self, count: int) -> Iterator[Tensor]:
        """Whole images without changes, batch by batch."""
        every = self.items
        size = max(2, min(self.part, MOST_PLAIN))
        for k in range(count):
            some = [every[(k * size + j) % len(every)] for j in range(size)]
            yield self._images(some, f"plain/{k}")

    @torch.no_grad()
    def spread(self) -> float:
        """How much the embeddings of some images differ."""
        self.method.eval()
        return self._spread(self.plain_images(4))

    @torch.no_grad()
    def measured(self, held: Views) -> dict[str, float]:
        """Numbers of the held-out batch: how much embeddings differ, and what the method says."""
        was_training = self.method.training
        self.method.eval()
        with gathered(self.method):
            found = self.method.measures(held)
        if len(held.image) > 1:
            found["spread"] = self._spread([held.image])
        self.method.train(was_training)
        return found

    def _spread(self, images: Iterable[Tensor]) -> float:
        """Standard deviation of embeddings over their size; 0 where all are the same."""
        with gathered(self.method):
            found = torch.cat([self.method.embed(x).float() for x in images])
        size = found.norm(dim=1).mean().clamp_min(1e-12) / found.shape[1] ** 0.5
        return float(found.std(0, correction=0).mean() / size)

    def _images(self, chosen: list[Item], name: str) -> Tensor:
        samples = [s for k, i in enumerate(chosen) for s in self.cutter.sample(i, f"{name}/{k}")]
        return torch.stack([s.image for s in samples]).to(self.machine.device)

    @torch.no_grad()
    def _bank(self, chosen: list[Item]) -> tuple[Tensor, Tensor]:
        """Embeddings (n, D) of images and what they are images of, the same on every rank."""
        was_training = self.method.training
        self.method.eval()
        each = max(1, self.part)
        rows: list[Tensor] = []
        ids: list[Tensor] = []
        rounds = -(-len(chosen) // (each * world()))
        for k in range(rounds):
            first = (k * world() + rank()) * each
            some = [chosen[j % len(chosen)] for j in range(first, first + each)]
            samples = [s for i in some for s in self.cutter.sample(i, f"bank/{i.index}")]
            image = torch.stack([s.image for s in samples]).to(self.machine.device)
            with gathered(self.method):
                rows.append(gather(self.method.embed(image).float()))
            ids.append(gather(torch.tensor([s.index for s in samples], device=image.device)))
        self.method.train(was_training)
        n = len(chosen) * self.sees.neighbours
        return torch.cat(rows)[:n], torch.cat(ids)[:n]

    def _asked(self, pool: ThreadPoolExecutor, step: int) -> "list[Future[Any]]":
        return [
            pool.submit(self.cutter.sample, self.order[d.index], str(d.place))
            for d in self._draws(step)
        ]

    def _draws(self, step: int) -> list[Draw]:
        clusters = self.method.assignment
        if not self.method.sees.clusters or clusters is None:
            return self.plan.batch(step)
        ids = torch.tensor([i.index for i in self.order])
        of_items = torch.full((len(self.order),), -1, dtype=torch.long)
        known = ids < len(clusters)
        of_items[known] = clusters.cpu()[ids[known]]
        return self.plan.apart(step, of_items)

    def _batch(self, step: int, asked: "list[Future[Any]]") -> tuple[Views, ...]:
        samples = [f.result() for f in asked]
        device = self.machine.device
        return tuple(
            assembled(
                [s for group in samples[k : k + self.part] for s in group],
                stream(self.seed, f"loss/{step}/{rank()}/{k}", device),
                step / self.steps,
                device,
            )
            for k in range(0, len(samples), self.part)
        )


def _check(crops: Crops, sees: Sees, batch: int, accumulate: int) -> None:
    """Refuse sizes that do not fit each other.

    Raises:
        UsageError: With the value.
    """
    sizes = [crops.size] + ([crops.small_size] if crops.small_size and sees.small else [])
    for size in sizes:
        if len(size) != sees.axes or min(size) < 1:
            raise UsageError(f"crops.size is {list(size)}", f"give {sees.axes} sides")
        multiples = sees.block if sees.block is not None else (sees.multiple,) * sees.axes
        for n, m in zip(size, multiples, strict=True):
            if n % m or n % sees.multiple:
                raise UsageError(
                    f"crops.size is {list(size)}", f"give multiples of {max(m, sees.multiple)}"
                )
    if sees.small and crops.small_size is None:
        raise UsageError("crops.small_size is missing", "this method sees small views")
    if 0 < sees.clusters < batch:
        raise UsageError(
            f"{sees.clusters} clusters are fewer than the {batch} images of a batch",
            "lower train.batch or raise method.clusters",
        )
    least = world() * accumulate * sees.neighbours
    if batch % least or batch < 1:
        raise UsageError(
            f"train.batch is {batch}",
            f"give a multiple of {least} (processes x accumulate x neighbours)",
        )
    if 0 < sees.clusters < batch:
        raise UsageError(
            f"there are {sees.clusters} clusters for a batch of {batch}",
            "ask for more clusters or lower train.batch",
        )


def _refuse_another_store(record: Mapping[str, Any], store: Store) -> None:
    if record.get("store", store.sha256) != store.sha256:
        raise UsageError(
            "the run was begun with another store, or this one has changed",
            "give the same store, or start anew with --overwrite",
            file=store.path,
        )
