"""Learning to reconstruct from raw scans, fully sampled or not, and from simulated ones.

Magnitude images stand in where a folder holds no raw data: they are measured by simulated coils.
That teaches a net how images arise from k-space; it does not turn images into raw data.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medssl.config import Raw
from medssl.core.batch import Acquired
from medssl.core.errors import InputError, UsageError, naming
from medssl.core.image import Image
from medssl.core.progress import Progress
from medssl.core.random import stream
from medssl.core.run import Run
from medssl.data.pool import Pool
from medssl.data.raw import Drawing, Patterns, Scan, Slice, batches, fixed_batch
from medssl.data.simulate import simulate_multicoil
from medssl.engine import raw as raw_scan
from medssl.engine.archive import Archive, short
from medssl.engine.build import reconstructor
from medssl.engine.course import Course
from medssl.engine.device import Machine
from medssl.engine.wanted import Wanted
from medssl.engine.weights import SeenRaw
from medssl.io.folder import Found, find_raw, find_scans, read_found
from medssl.io.kspace import is_raw, read_kspace
from medssl.method import Method, Reconstructor

SHARE_OF_MEMORY = 0.25
"""Of what is free, for scans in memory."""
SLOWEST_TURN = 25
"""Steps after which another scan is read at the latest."""
TEST_SLICES = 4
"""Looked at and not learnt from."""
FEWEST_PIXELS = 32
"""Along each side of a picture that can be measured."""


@dataclass(frozen=True, kw_only=True)
class RawLook:
    """What is kept of one scan: a line of `scans.jsonl`, without names."""

    id: str
    """First digits of the hash of its content."""
    group: str
    """Equal for scans that must not be parted between learning and testing."""
    kind: Literal["raw", "picture"]
    full: bool
    """Fully sampled."""
    shape: tuple[int, int]
    """(H, W) of a slice."""
    slices: int
    """That are learnt from."""
    coils: int
    """After compression; of pictures the most that are simulated."""
    acceleration: float
    sigma: float
    """Noise of each real component, where images are about 1."""

    @property
    def n_bytes(self) -> int:
        """In memory: k-space and maps."""
        return 16 * self.coils * self.shape[0] * self.shape[1] * self.slices


@dataclass(frozen=True)
class _Sources:
    """Scans that are learnt from."""

    labelled: int
    """How many have a truth."""
    kinds: list[list[Callable[[], Scan]]]
    """What reads or makes them, by kind: those of the user with a truth and without, generated
    ones with a truth and without; none is empty. Each kind has its turn, however few it has."""


class ReconCourse(Course[RawLook, Acquired]):
    """Raw scans, pictures, and what is generated."""

    look_type = RawLook
    remedy: ClassVar[str] = "give raw data or magnitude images, or set raw.simulated"
    smaller: ClassVar[str] = "lower train.batch or the size of the net with --set"

    def __init__(self, wanted: Wanted, machine: Machine, tell: Progress) -> None:
        super().__init__(wanted, machine, tell)
        self._untrained, _ = reconstructor(wanted.recipe)
        if self._untrained.one_scan is not None:
            name = wanted.recipe.name
            raise UsageError(
                f"{name} learns from the scan that it reconstructs",
                f"medssl recon --method {name.replace('_', '-')}",
            )
        self._raw = wanted.recipe.raw or Raw()
        self._source = raw_scan.Source(wanted.recipe, self._untrained, machine, self._raw)

    @property
    def needs_scans(self) -> bool:
        """Generated scans are enough."""
        return self._raw.simulated == 0

    def find(self, root: Path) -> list[Found]:
        """Raw data, or else images."""
        return find_raw(root, self.limits) or find_scans(root, self.limits)

    def look(self, found: Found, group: str) -> RawLook:
        """How it was sampled, and its noise."""
        if found.refusal is not None:
            raise found.refusal
        if not is_raw(found.path):
            shape, slices = self._pictures(found, self.wanted.train.slices)
            return RawLook(
                id=short(found.id),
                group=group,
                kind="picture",
                full=True,
                shape=shape,
                slices=len(slices),
                coils=self._source.most_coils,
                acceleration=1.0,
                sigma=self._raw.noise[1],
            )
        ready = self._source.opened(read_kspace(found.path, limits=self.limits), Run("train"))
        full = raw_scan.fully_sampled(ready)
        pattern = ready.slices.sampling(ready.slices.n // 2)
        if not full and self._untrained.learns_from == "full":
            raise InputError(
                f"is undersampled (R {pattern.size / pattern.sum():.2g}) and has no truth",
                "take recon/noise2recon or recon/ssdu",
            )
        return RawLook(
            id=short(found.id),
            group=group,
            kind="raw",
            full=full,
            shape=ready.slices.shape,
            slices=min(ready.slices.n, self.wanted.train.slices),
            coils=len(ready.chain.sigma),
            acceleration=float(pattern.size / pattern.sum()),
            sigma=raw_scan.relative_sigma(ready),
        )

    def method(self, archive: Archive[RawLook]) -> tuple[Method[Acquired], dict[str, Any]]:
        """The recipe's, if there is a truth where it needs one."""
        method, settled = reconstructor(self.wanted.recipe)
        if method.learns_from != "none" and not self._sources(archive).labelled:
            raise InputError(
                f"none of {len(archive.looks)} scans has a truth, {self.wanted.recipe.name} needs "
                "fully sampled ones",
                "take recon/noise2recon_ssdu or recon/ssdu, or set raw.labelled",
            )
        return method, settled

    def facts(self, archive: Archive[RawLook], method: Method[Acquired]) -> dict[str, Any]:
        """The range of noise and acceleration, and how many scans are held."""
        sources, looks, raw = self._sources(archive), archive.looks, self._raw
        assert isinstance(method, Reconstructor)
        native = [look.sigma for look in looks] + ([*raw.noise] if raw.simulated else [])
        own = [look.acceleration for look in looks if not look.full]
        measured = [*raw.acceleration] if raw.simulated or any(k.full for k in looks) else []
        seen = SeenRaw(
            learnt=len(archive.learn),
            tested=len(archive.test),
            labelled=sources.labelled,
            generated=raw.simulated,
            pictures=sum(look.kind == "picture" for look in looks),
            acceleration=(min(own + measured), max(own + measured)),
            sigma=(min(native), float(np.hypot(max(native), method.adds_noise[1]))),
        )
        sizes = [look.n_bytes for look in looks]
        sizes += [self._source.generated_bytes] if raw.simulated else []
        fitting = int(SHARE_OF_MEMORY * self.limits.pixels) // max(sizes)
        counts = [len(kind) for kind in sources.kinds]
        return {
            "seen": dataclasses.asdict(seen),
            "sampling": {
                "hold": [max(1, min(n, fitting // len(counts))) for n in counts],
                "turn": max(1, min(SLOWEST_TURN, self.wanted.train.steps // max(counts))),
            },
        }

    def doubts(self, archive: Archive[RawLook]) -> list[str]:
        """No scan to test on; simulation."""
        found = []
        n_pictures = sum(look.kind == "picture" for look in archive.looks)
        if n_pictures:
            found.append(
                f"{n_pictures} magnitude images are measured by simulated coils; this trains a "
                "net, it does not turn images into raw data"
            )
        if not archive.learn:
            found.append(f"only the {self._raw.simulated} generated scans are learnt from")
        if not archive.test and not self._raw.simulated and self.wanted.train.held_out > 0:
            found.append("too few patients to keep one for testing; no held-out loss")
        return found

    def held(
        self, archive: Archive[RawLook], method: Method[Acquired]
    ) -> Callable[[], Acquired] | None:
        """Slices of patients that are only tested on, or generated ones."""
        del method
        slices: list[Slice] = []
        # consistency alone is least where a net does nothing: it must not choose the weights
        needs_truth = self._untrained.learns_from != "none"
        suited = [scan for scan in archive.test if scan[1].full or not needs_truth]
        for scan in suited[:TEST_SLICES]:
            own = None if self._raw.labelled > 0 else _number(scan[1].id)
            slices += self._opened(scan, own, 1).slices
        if not slices and self._raw.simulated and self.wanted.train.held_out > 0:
            first = self._raw.simulated
            for k in range(first, first + TEST_SLICES):
                slices += self._generated(k, None if self._raw.labelled > 0 else k).slices
        return fixed_batch(slices, self._drawing()) if slices else None

    def batches(
        self,
        archive: Archive[RawLook],
        method: Method[Acquired],
        record: Mapping[str, Any],
        start: int,
    ) -> Iterator[Acquired]:
        """Of each kind of scan in turn."""
        del method
        words, kinds = record["sampling"], self._sources(archive).kinds
        pools = [
            self._pool(items, int(hold), int(words["turn"]))
            for items, hold in zip(kinds, words["hold"], strict=True)
        ]
        return batches(pools, self._drawing(), start, self.wanted.train.steps)

    def _sources(self, archive: Archive[RawLook]) -> _Sources:
        """What reads or makes each scan that is learnt from."""
        full = sorted(look.id for _, look in archive.learn if look.full)  # hashes: chance
        with_truth = set(full[: self._count(len(full))])
        kinds: list[list[Callable[[], Scan]]] = [[], [], [], []]
        for scan in archive.learn:
            truth = scan[1].id in with_truth
            own = None if truth or not scan[1].full else _number(scan[1].id)
            kinds[0 if truth else 1].append(self._reader(scan, own))
        for k in range(self._raw.simulated):
            truth = k < self._count(self._raw.simulated)
            kinds[2 if truth else 3].append(self._maker(k, None if truth else k))
        used = kinds[::2] if self._untrained.learns_from == "full" else kinds
        return _Sources(len(kinds[0]) + len(kinds[2]), [kind for kind in used if kind])

    def _pool(self, items: Sequence[Callable[[], Scan]], hold: int, turn: int) -> Pool[Scan]:
        return Pool(len(items), lambda k: items[k](), hold=hold, turn=turn, seed=self.wanted.seed)

    def _reader(self, scan: tuple[Found, RawLook], own: int | None) -> Callable[[], Scan]:
        return lambda: self._opened(scan, own, self.wanted.train.slices)

    def _maker(self, k: int, own: int | None) -> Callable[[], Scan]:
        return lambda: self._generated(k, own)

    def _count(self, n: int) -> int:
        """How many of some fully sampled scans may show their truth: one at least, or none."""
        share = self._raw.labelled
        return min(n, max(1, round(share * n))) if share > 0 else 0

    def _opened(self, scan: tuple[Found, RawLook], own: int | None, most: int) -> Scan:
        """Some slices of a scan of the user, evenly spaced."""
        found, look = scan
        with naming(found.path):
            if look.kind == "raw":
                kspace = read_kspace(found.path, limits=self.limits)
                ready = self._source.opened(kspace, Run("train"))
                return self._source.held(ready, most, own)
            shape, pictures = self._pictures(found, most)
            made = []
            for k, picture in enumerate(pictures):
                number = _number(look.id) + k
                simulated = simulate_multicoil(picture, number % 2**32, shape=shape)
                made.append(self._source.simulated(simulated, number % 2**32, own))
            return Scan(tuple(made))

    def _generated(self, k: int, own: int | None) -> Scan:
        """The k-th generated scan."""
        name = f"generated/{k}"
        number = int(torch.randint(2**31, (), generator=stream(self.wanted.seed, name)))
        return Scan((self._source.generated(number, own),))

    def _pictures(
        self, found: Found, most: int
    ) -> tuple[tuple[int, int], list[NDArray[np.float32]]]:
        """Some slices of magnitude images, and the matrix that they are measured on.

        Raises:
            InputError: It holds no magnitudes.
        """
        with naming(found.path):
            image = read_found(found, self.limits)
            return _matrix(image, self._raw.size), _slices(image, most)

    def _drawing(self) -> Drawing:
        return Drawing(
            patterns=Patterns(self._raw, self.wanted.seed),
            count=self.wanted.train.batch,
            seed=self.wanted.seed,
            device=self.machine.device,
        )


def _number(identity: str) -> int:
    """A whole number that a hash stands for."""
    return int(identity, 16)


def _matrix(image: Image, size: int) -> tuple[int, int]:
    """(H, W) of a picture's scan: its own, or as much smaller as makes its longer side `size`."""
    height, width = image.shape[:2]
    share = min(1.0, size / max(height, width))
    return max(FEWEST_PIXELS, round(share * height)), max(FEWEST_PIXELS, round(share * width))


def _slices(image: Image, most: int) -> list[NDArray[np.float32]]:
    """(H, W) slices with something on them, evenly spaced.

    Raises:
        InputError: Values below 0, or nothing.
    """
    if image.data.min() < 0:
        raise InputError(
            f"values reach down to {image.data.min():g}, magnitudes are 0 or more",
            "give magnitude images",
        )
    if min(image.shape[:2]) < FEWEST_PIXELS:
        raise InputError(f"has {image.shape[0]}x{image.shape[1]} pixels", "it is too small")
    volume = image.data[0].reshape(*image.shape[:2], -1)
    energy = np.square(volume, dtype=np.float64).sum((0, 1))
    lit = np.flatnonzero(energy >= 0.1 * energy.max())
    if not energy.max() > 0:
        raise InputError("every voxel is 0", "it teaches nothing")
    count = min(most, len(lit))
    chosen = lit[[int((k + 0.5) * len(lit) / count) for k in range(count)]]
    return [np.ascontiguousarray(volume[:, :, k], np.float32) for k in chosen]
