"""Few labels on one CT volume: what a pretraining of minutes on a CPU is worth, whatever its sign.

The volume is cut into blocks of 8 axial slices: of each four blocks the first has labels, the third
is tested on, the second and fourth lie between them. Test slices are out of the pretraining, which
sees all others and a scan of another patient, without labels (`recipes/pretrain/fewlabel_ct.yaml`).

Linear probe: the class of the centre voxel of a 64 x 64 patch from the pooled last map, its central
2 x 2 and the centre of the other maps, with 5, 20 and 100 labels for each of nine classes, beside
random weights whose norms were calibrated on the same slices. Segmentation: a U-Net on the encoder
with few labelled slices, from random weights, from random weights trained longer by the operations
of the pretraining, and from the pretrained ones. 95 % intervals are over pretraining seeds, draws
of labels and slices (blocks of them where segmented); there is one labelled patient, so they say
nothing of others.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from _table import arguments, show

from medssl import api
from medssl.data.store import Made, Store, Volume, is_store, write_store
from medssl.data.views import normalised
from medssl.engine import few_labels
from medssl.engine.device import machine
from medssl.engine.encoders import LoadedEncoder, load_encoder
from medssl.engine.label_maps import Case
from medssl.engine.labels import Labelled
from medssl.engine.probe import ACCURACY, Asked, Report, probe, twins
from medssl.io.read import read

CLASSES = (
    ("liver", (5,)),
    ("colon", (20,)),
    ("small bowel, duodenum", (18, 19)),
    ("bladder", (21,)),
    ("vertebrae", tuple(range(26, 34))),
    ("hips", (77, 78)),
    ("muscles", tuple(range(80, 90))),
    ("spleen", (1,)),
)
"""Label ids of each; the ninth class is everything else. Names only label the table."""
BLOCK, PERIOD = 8, 4
SIZE = 64
POOL = 200
"""Patches of each class that labels are drawn from, at most."""
EACH = 60
"""Test patches of each class, at most."""
LABELS = (5, 20, 100)
TWINS = 8
"""Draws of random weights for each run, whose scores are averaged."""


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, two draws")
    parser.add_argument("--seeds", type=int, default=3, help="pretraining seeds")
    parser.add_argument("--steps", type=int, help="of the pretraining; default: the recipe's")
    parser.add_argument("--runs", type=Path, help="folder that keeps the pretrainings")
    parser.add_argument("--no-segmentation", action="store_true", help="only the linear probe")
    words = parser.parse_args()
    steps = words.steps or (50 if words.quick else None)
    begun = time.process_time()
    where = machine("cpu", None, 1)
    folder = words.data / "ct"
    image = nib.load(folder / "volume" / "example_ct.nii.gz")
    voxels = np.asarray(image.dataobj).astype(np.int16)
    label = classes_of(np.asarray(nib.load(next((folder / "volume").glob("*seg*"))).dataobj))
    spacing = tuple(float(v) for v in image.header.get_zooms()[:3])
    with tempfile.TemporaryDirectory() as scratch:
        place = words.runs or Path(scratch)
        place.mkdir(exist_ok=True)
        store = place / "store"
        if not is_store(store):
            write_store(store, pieces(voxels, spacing, folder))
        runs, losses = [], []
        for k in range(words.seeds):
            out = place / f"run{k}"
            done = api.pretrain(
                store,
                out,
                "pretrain/fewlabel_ct",
                steps=steps,
                seed=k,
                device="cpu",
                threads=1,
                resume=True,
            )
            losses.append(done.record["loss"]["last"])
            runs.append(load_encoder(out, {}))
        pretrained_at = time.process_time()
        n_twins = 2 if words.quick else TWINS
        random = [t for one in runs for t in twins(one, n_twins, store, where, lambda *_: None)]
        volume = Store.open(store).volumes[0]
        report = probed(runs, random, voxels, label, volume, draws=2 if words.quick else 5)
    probed_at = time.process_time()
    rows = as_rows(report, {5: 45, 20: 180, 100: 900})
    notes = [
        f"loss of the last steps: {', '.join(f'{v:.3f}' for v in losses)}; CPU-s: "
        f"{pretrained_at - begun:.0f} of pretraining, {probed_at - pretrained_at:.0f} of probes"
    ]
    if not words.no_segmentation:
        asked = few_labels.Asked(
            labelled=(3,), steps=10 if words.quick else 120, seeds=1 if words.quick else 2
        )
        cases = slices(voxels, label, runs[0], volume)
        found = few_labels.segment(runs, cases, asked, where, lambda *_: None)
        rows += as_rows(found, {3: 3})
        facts = found.facts
        notes.append(
            f"segmentation: {facts['steps']} steps, arm B {facts['steps_of_b']} "
            f"({facts['share_of_pretraining']:.3f} of the operations of the pretraining); "
            f"{time.process_time() - probed_at:.0f} CPU-s"
        )
    protocol = (
        f"SparK, {words.seeds} pretraining seeds, {steps or 500} steps of 16 patches, one thread; "
        f"{report.facts['draws']} draws of labels, {n_twins} of random weights per run; "
        "mean [95 % interval]"
    )
    name = "few_label_quick" if words.quick else "few_label"
    show(name, protocol, rows, as_json=words.json, notes=notes)


def classes_of(ids: np.ndarray) -> np.ndarray:
    """Index into `CLASSES` plus 1; 0 is everything else."""
    found = np.zeros(ids.shape, np.int64)
    for k, (_, some) in enumerate(CLASSES, 1):
        found[np.isin(ids, some)] = k
    return found


def part_of(z: int) -> str:
    """What a slice is for."""
    return {0: "label", 2: "test"}.get(z // BLOCK % PERIOD, "between")


def pieces(voxels: np.ndarray, spacing: tuple[float, float, float], folder: Path) -> Sequence[Made]:
    """What is pretrained on: runs of slices that are not tested on, and another patient."""
    inside = [z for z in range(voxels.shape[2]) if part_of(z) != "test"]
    runs = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)
    found = [
        Made(
            image=voxels[None, :, :, run],
            key=f"{k:032x}",
            modality="CT",
            spacing=spacing,
            patient="a",
        )
        for k, run in enumerate(runs)
    ]
    other = read(folder / "series_3mm_dicom")
    found.append(
        Made(
            image=other.data.astype(np.int16),
            key="f" * 32,
            modality="CT",
            spacing=other.spacing,
            patient="b",
        )
    )
    return found


def probed(
    runs: Sequence[LoadedEncoder],
    random: Sequence[LoadedEncoder],
    voxels: np.ndarray,
    label: np.ndarray,
    volume: Volume,
    draws: int,
) -> Report:
    """The linear probe of the class of centre voxels."""
    at = centres(label)
    y = label[tuple(at.T)]
    split = tuple("test" if part_of(z) == "test" else "train" for z in at[:, 2])
    # an inner cross-validation leaves out blocks; slices that are tested on are the units of chance
    group = np.where(np.array(split) == "test", label.shape[2] + at[:, 2], at[:, 2] // BLOCK)
    names = ("rest", *(name for name, _ in CLASSES))
    arms = {}
    for arm, some in (("pretrained", runs), ("random", random)):
        arms[arm] = [
            Labelled(features(one, voxels, at, volume), y, group, split, names) for one in some
        ]
    return probe(arms, Asked(tasks=("linear",), per_class=LABELS, seeds=draws))


def centres(label: np.ndarray) -> np.ndarray:
    """(n, 3) voxels of each class: all that may be learnt from, up to `POOL`, and some to test."""
    rng = np.random.default_rng(0)
    parts = np.array([part_of(z) for z in range(label.shape[2])])
    found = []
    for k in range(len(CLASSES) + 1):
        for part, most in (("label", POOL), ("test", EACH)):
            inside = np.argwhere((label == k) & (parts == part))
            found.append(rng.permutation(inside)[:most])
    return np.concatenate(found)


def features(
    loaded: LoadedEncoder, voxels: np.ndarray, at: np.ndarray, volume: Volume
) -> np.ndarray:
    """(n, D) of the patches around voxels."""
    half = SIZE // 2
    x = normalised(voxels[None], volume, loaded.crops)[0]
    x = torch.nn.functional.pad(x.movedim(2, 0), (half,) * 4, mode="replicate")
    patches = torch.stack([x[z, i : i + SIZE, j : j + SIZE] for i, j, z in at.tolist()])[:, None]
    rows = []
    with torch.no_grad():
        for some in patches.split(64):
            *fine, last = loaded.method.features(some)
            m = last.shape[2] // 2
            near = last[:, :, m - 1 : m + 1, m - 1 : m + 1].flatten(1)
            middle = [f[:, :, f.shape[2] // 2, f.shape[3] // 2] for f in fine]
            rows.append(torch.cat([last.mean((2, 3)), near, *middle], 1))
    return torch.cat(rows).double().numpy()


def slices(
    voxels: np.ndarray, label: np.ndarray, loaded: LoadedEncoder, volume: Volume
) -> list[Case]:
    """Labelled slices to learn from and to validate on, every second test slice."""
    x = normalised(voxels[None], volume, loaded.crops)
    split = {0: "train", 4: "train", 8: "train", 12: "val"}
    found = []
    for z in range(voxels.shape[2]):
        block = z // BLOCK
        part = "test" if part_of(z) == "test" and z % 2 == 0 else split.get(block, "")
        if part and label[:, :, z].any():
            found.append(Case(x[..., z], torch.from_numpy(label[:, :, z].copy()), block, part))
    return found


def as_rows(report: Report, counts: dict[int, int]) -> list[dict[str, str]]:
    return [
        {
            "probe": r.probe,
            "labels": str(counts.get(int(r.labels), 0)) if r.labels.isdecimal() else r.labels,
            "arm": r.arm,
            "metric": "accuracy" if r.metric == ACCURACY else r.metric,
            "value": r.value.text,
        }
        for r in report.rows
    ]


if __name__ == "__main__":
    main()
