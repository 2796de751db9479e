"""What all tests share: where real scans lie, and scans that are made here."""

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = "MEDSSL_DATA"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real scans that lie beside the project; skipped, with the reason, where there are none."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get(DATA, default))
    if not folder.is_dir():
        pytest.skip(f"{DATA} names no folder of real scans")
    return folder


@pytest.fixture(autouse=True)
def untouched_globals():
    """No test may leave another thread count or another state of the global generator behind."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"


@pytest.fixture
def medssl(monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, stdout, stderr."""
    run = importlib.import_module("medssl.cli._errors").run

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medssl", *map(str, words)])
        capfd.readouterr()
        old = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as leave:
            run()
        signal.signal(signal.SIGTERM, old)
        out, err = capfd.readouterr()
        return int(leave.value.code or 0), out, err

    return call


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write an array as a NIfTI file and return its path."""
    import nibabel as nib

    def write(
        array: np.ndarray,
        name: str = "scan.nii.gz",
        affine: np.ndarray | None = None,
        slope: tuple[float, float] | None = None,
    ) -> Path:
        if affine is None:
            affine = np.diag([-1.0, 1.2, 1.5, 1.0])
            affine[:3, 3] = 10, -20, 30
        kind = nib.Nifti2Image if name.startswith("nifti2") else nib.Nifti1Image
        image = kind(array, affine, dtype=array.dtype)
        if slope is not None:
            image.header.set_slope_inter(*slope)
        path = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nib.save(image, path)
        return path

    return write


@pytest.fixture
def brain() -> np.ndarray:
    """A small noisy magnitude volume: three ellipsoids, Rician noise of 6, peak 160."""
    grid = np.indices((40, 36, 24)) - np.array([20, 18, 12])[:, None, None, None]
    i, j, k = grid.astype(np.float64)
    clean = np.zeros(i.shape)
    clean[(i / 17) ** 2 + (j / 15) ** 2 + (k / 10) ** 2 < 1] = 100
    clean[((i - 5) / 7) ** 2 + ((j + 3) / 6) ** 2 + (k / 6) ** 2 < 1] = 160
    clean[((i + 6) / 5) ** 2 + ((j - 4) / 5) ** 2 + (k / 7) ** 2 < 1] = 50
    rng = np.random.default_rng(0)
    noisy = np.hypot(clean + 6 * rng.standard_normal(i.shape), 6 * rng.standard_normal(i.shape))
    return noisy.astype(np.float32)


@pytest.fixture(scope="session")
def coils() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A generated head seen by coils: k-space (coil, H, W), image (H, W), maps (coil, H, W)."""

    def make(
        shape: tuple[int, int] = (96, 80), n_coils: int = 8, sigma: float = 0.0, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from scipy.ndimage import gaussian_filter

        from medssl.physics.fourier import to_kspace

        rng = np.random.default_rng(seed)
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        image = 0.5 * ((x / 0.75) ** 2 + (y / 0.85) ** 2 < 1)
        image = image + 0.3 * ((x / 0.68) ** 2 + (y / 0.78) ** 2 < 1)
        for _ in range(14):
            cx, cy = rng.uniform(-0.45, 0.45, 2)
            rx, ry = rng.uniform(0.04, 0.2, 2)
            image = image + rng.uniform(-0.3, 0.3) * (
                ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            )
        image = gaussian_filter(image, 0.8) * np.exp(1j * (0.6 * x + 0.8 * y * x))
        maps = []
        for k in range(n_coils):
            angle = 2 * np.pi * k / n_coils
            px, py = 1.3 * np.cos(angle), 1.3 * np.sin(angle)
            reach = 1 / (1 + ((x - px) ** 2 + (y - py) ** 2) / 0.8**2)
            maps.append(reach * np.exp(1j * (angle + 0.5 * px * x + 0.5 * py * y)))
        stack = np.stack(maps)
        stack = stack / np.sqrt((np.abs(stack) ** 2).sum(0))
        kspace = to_kspace(torch.from_numpy(stack * image))
        noise = rng.standard_normal((2, *stack.shape))
        kspace = kspace + sigma * torch.from_numpy(noise[0] + 1j * noise[1])
        single = torch.complex64
        return (
            kspace.to(single),
            torch.from_numpy(image).to(single),
            torch.from_numpy(stack).to(single),
        )

    return make


@pytest.fixture
def pretrained(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a pretraining of no step, as `medssl pretrain` leaves it."""
    from medssl import config
    from medssl.core.run import plain
    from medssl.engine.build import encoder
    from medssl.io import weights
    from medssl.io.run_folder import RunFolder

    small = {"net": "resnet", "depths": [1, 1], "width": 4, "bottleneck": False, "stem": "small"}

    def write(
        name: str = "run",
        method: dict[str, object] | None = None,
        size: tuple[int, ...] = (16, 16),
        *,
        seed: int = 0,
        steps: int = 3,
    ) -> Path:
        tree = {
            "task": "pretrain",
            "name": "tiny",
            "method": method or {"name": "spark", "net": small, "decoder_width": 8},
            "crops": {"size": list(size)},
            "train": {"steps": steps, "lr": 1.0e-3, "batch": 4},
            "seed": seed,
        }
        recipe = config.recorded(tree, {}, "run.json")
        made, settled = encoder(recipe)
        generator = torch.Generator().manual_seed(0)
        made.calibrate([torch.randn(2, 1, *size, generator=generator)])
        folder = RunFolder(tmp_path / name)
        folder.begin({})
        written = plain(config.as_tree(recipe, settled))
        digest = weights.write(folder.weights, made.state_dict())
        folder.write_record(
            {
                "wanted": {"recipe": written, "noise": "auto", "seed": seed},
                "recipe": written,
                "weights": {"sha256": digest},
                "complete": True,
            }
        )
        return folder.path

    return write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of four volumes of three patients: balls in boxes, CT and MR."""
    from medssl.data.store import Made, write_store

    rng = np.random.default_rng(0)
    volumes = []
    for k in range(4):
        i, j, z = np.indices((40, 36, 6)) - np.array([20, 18, 3])[:, None, None, None]
        ball = (i**2 + j**2 + (3 * z) ** 2 < 200 + 20 * k) * 100.0
        image = ball + rng.normal(0, 4, ball.shape)
        ct = k % 2 == 0
        image = (image - 1000 * (ball == 0)).astype(np.int16) if ct else image.astype(np.float32)
        volumes.append(
            Made(
                image=image[None],
                key=f"{k:032x}",
                modality="CT" if ct else "MR",
                spacing=(1.0, 1.0, 3.0),
                patient=f"patient{min(k, 2)}",
                split=("train", "train", "val", "test")[k],
            )
        )
    return write_store(tmp_path / "store", volumes).path
