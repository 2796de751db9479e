"""Learning to denoise from many noisy scans: crops of a few that are held in memory at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from medssl import config
from medssl.core.batch import Noisy
from medssl.core.errors import naming
from medssl.core.progress import Progress
from medssl.data.pool import Pool, Sampling, batches, fixed_batch
from medssl.engine import choose, infer
from medssl.engine.archive import Archive
from medssl.engine.build import restorer
from medssl.engine.course import Course
from medssl.engine.device import Machine
from medssl.engine.noisy_scan import HeldScan, Look, facts_of, hold, look_at
from medssl.engine.predict import predict
from medssl.engine.settle import settle
from medssl.engine.wanted import Wanted
from medssl.engine.weights import Compared, Seen
from medssl.io.folder import Found, find_scans
from medssl.method import Method, Restorer
from medssl.physics.noise_level import NoiseEstimate

MOST_HELD = 16
"""Scans in memory at once, if they fit."""
SHARE_OF_MEMORY = 0.25
"""Of what is free, for scans in memory."""
SLOWEST_TURN = 25
"""Steps after which another scan is read at the latest."""
TEST_CROPS = 16
"""Crops of patients that are only tested on, in one batch, if they are not too large."""
TEST_VOXELS = 1 << 19
"""Of these crops together."""
LARGEST_CROP = 256
"""Side of the crops, in voxels, where the recipe takes whole slices."""
COMPARED = 2
"""Held-out scans that the default method restores too."""


class DenoiseCourse(Course[Look, Noisy]):
    """Scans that are noisy; clean ones are not needed."""

    look_type = Look
    remedy: ClassVar[str] = "give a folder of NIfTI, DICOM, PNG or NPY scans"

    def __init__(self, wanted: Wanted, machine: Machine, tell: Progress) -> None:
        super().__init__(wanted, machine, tell)
        self._untrained, _ = restorer(wanted.recipe)
        self._noises: dict[str, NoiseEstimate] = {}

    def find(self, root: Path) -> list[Found]:
        """Every image."""
        return find_scans(root, self.limits)

    def look(self, found: Found, group: str) -> Look:
        """Its noise and size."""
        return look_at(found, group, self.wanted.noise, self._untrained, self.limits)

    def method(self, archive: Archive[Look]) -> tuple[Method[Noisy], dict[str, Any]]:
        """As suits the scans."""
        return restorer(self.wanted.recipe, facts_of(archive.looks))

    def facts(self, archive: Archive[Look], method: Method[Noisy]) -> dict[str, Any]:
        """The range of the noise, and how many scans are held."""
        looks, n_learn = archive.looks, len(archive.learn)
        largest = max(look.n_bytes for look in looks)
        n_held = int(SHARE_OF_MEMORY * self.limits.pixels) // largest
        seen = Seen.of(looks, len(archive.test), _restorer(method).crop_axes)
        return {
            "seen": dataclasses.asdict(seen),
            "sampling": {
                "hold": max(1, min(MOST_HELD, n_held, n_learn)),
                "turn": max(1, min(SLOWEST_TURN, self.wanted.train.steps // n_learn)),
            },
        }

    def doubts(self, archive: Archive[Look]) -> list[str]:
        """No patient to test on, noise of unclear law."""
        found, looks = [], archive.looks
        if not archive.test and self.wanted.train.held_out > 0:
            found.append("too few patients to keep one for testing; no held-out loss")
        unsure = sum(look.unsure for look in looks)
        if unsure:
            found.append(f"the law of the noise is not sure in {unsure} of {len(looks)} scans")
        return found

    def held(self, archive: Archive[Look], method: Method[Noisy]) -> Callable[[], Noisy] | None:
        """Crops of patients that are only tested on."""
        if not archive.test:
            return None
        sampling = self._sampling(method)
        assert sampling.size is not None
        count = min(TEST_CROPS, max(2, TEST_VOXELS // sampling.size**sampling.axes))
        some = archive.test[:count]
        return fixed_batch(
            (self._hold(scan, method) for scan in some),
            [look.shape for _, look in some],
            dataclasses.replace(sampling, count=count),
        )

    def batches(
        self,
        archive: Archive[Look],
        method: Method[Noisy],
        record: Mapping[str, Any],
        start: int,
    ) -> Iterator[Noisy]:
        """Crops of the scans that are learnt from."""
        pool = Pool(
            len(archive.learn),
            lambda k: self._hold(archive.learn[k], method),
            hold=int(record["sampling"]["hold"]),
            turn=int(record["sampling"]["turn"]),
            seed=self.wanted.seed,
        )
        return batches(pool, self._sampling(method), start, self.wanted.train.steps)

    def compared(self, archive: Archive[Look], method: Method[Noisy]) -> Compared | None:
        """The expected errors of both, where the check favours neither."""
        own: list[float] = []
        others: list[float] = []
        device, seed = self.machine.device, self.wanted.seed
        for one in archive.test[:COMPARED]:
            scan = self._hold(one, method)
            image, noise = scan.image, scan.scale.noise
            if noise.spectrum is not None:  # the default would believe what the check believes
                continue
            self.tell("compare", len(own), COMPARED)
            recipe = config.load("denoise", choose.default(noise, "standard"))
            default, _ = restorer(recipe, choose.facts(image, noise))
            for scale, errors in (
                (scan.scale, own),
                (infer.scaling(default.to(device), image, noise), others),
            ):
                settle(scale, image, device, seed)
                errors.append(predict(scale, image, device, seed).error)
        if not own:
            return None
        return Compared(
            scans=len(own), error=sum(own) / len(own), default_error=sum(others) / len(own)
        )

    def _sampling(self, method: Method[Noisy]) -> Sampling:
        train = self.wanted.train
        return Sampling(
            axes=_restorer(method).crop_axes,
            size=train.crop or LARGEST_CROP,
            count=train.batch,
            seed=self.wanted.seed,
            device=self.machine.device,
        )

    def _hold(self, scan: tuple[Found, Look], method: Method[Noisy]) -> HeldScan:
        """A scan in memory; its noise is estimated once, unless it is large."""
        found, look = scan
        known = self._noises.get(look.id)
        with naming(found.path):
            held = hold(found, self.wanted.noise, _restorer(method), self.limits, known)
        if held.scale.noise.sigma_map is None and held.scale.noise.spectrum is None:
            self._noises[look.id] = held.scale.noise  # small, and read again at every turn
        return held


def _restorer(method: Method[Noisy]) -> Restorer:
    assert isinstance(method, Restorer)
    return method
