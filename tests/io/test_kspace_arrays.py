"""K-space that is an array in a file: BART, NPY, fastMRI; what it cannot say is not guessed."""

import hashlib
import tracemalloc

import h5py
import numpy as np
import pytest

from medssl.core.errors import InputError, MedsslError, UsageError
from medssl.io import trajectory
from medssl.io.kspace import is_raw, read_kspace
from medssl.io.mapped import forget

FASTMRI_XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>4.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{r}</x><y>{r}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>140</x><y>140</y><z>4.5</z></fieldOfView_mm></reconSpace>
<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""


def write_cfl(stem, array, dims=None):
    dims = array.shape if dims is None else dims
    stem.with_name(stem.name + ".hdr").write_text(
        "# Dimensions\n" + " ".join(map(str, dims)) + "\n# Creator\nsomeone\n"
    )
    array.astype("<c8").ravel(order="F").tofile(stem.with_name(stem.name + ".cfl"))
    return stem


def refusal(path, **words) -> str:
    with pytest.raises(MedsslError) as caught:
        read_kspace(path, **words)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.remedy
    return text


@pytest.mark.parametrize("ending", ["", ".cfl", ".hdr"])
def test_a_plane_of_bart_is_read_under_each_of_its_names(tmp_path, coil_kspace, ending):
    data = coil_kspace((24, 20))
    write_cfl(tmp_path / "scan", data.transpose(1, 2, 0)[None])
    found = read_kspace(tmp_path / f"scan{ending}")
    assert np.array_equal(found.data, data)
    assert (found.encoded, found.geometry.shape, found.nominal) == ((True, True), (24, 20), True)
    assert found.sampling.all()
    assert found.n_coils == 4


def test_a_volume_of_bart_stays_on_disk(tmp_path, coil_kspace):
    data = coil_kspace((16, 12, 10), 3)
    write_cfl(tmp_path / "v", data.transpose(1, 2, 3, 0))
    found = read_kspace(tmp_path / "v")
    assert found.data.shape == (3, 16, 12, 10)
    assert isinstance(found.data, np.memmap)
    assert not found.data.flags.writeable
    assert np.array_equal(found.data, data)


def test_slices_averages_and_frames_of_bart(tmp_path, coil_kspace):
    # (coil, frame, slice, ky, kx) to BART's places 0, 1, 3, 10 (time), 13 (slice), 14 (average)
    scans = np.stack([coil_kspace((16, 12), 2, seed) for seed in range(6)])
    each = scans.reshape(2, 3, 2, 16, 12)  # (frame, slice, coil, ky, kx)
    full = np.zeros((16, 12, 1, 2, *[1] * 6, 2, 1, 1, 3, 2), np.complex64)
    for f, s in np.ndindex(2, 3):
        full[:, :, 0, :, 0, 0, 0, 0, 0, 0, f, 0, 0, s, 0] = each[f, s].transpose(1, 2, 0) * 0.5
        full[:, :, 0, :, 0, 0, 0, 0, 0, 0, f, 0, 0, s, 1] = each[f, s].transpose(1, 2, 0) * 1.5
    write_cfl(tmp_path / "s", full)
    assert "--frame N, 0 to 1" in refusal(tmp_path / "s")
    assert "no frame 2" in refusal(tmp_path / "s", frame=2)
    found = read_kspace(tmp_path / "s", frame=1)
    assert found.encoded == (True, True, False)
    assert np.allclose(found.data, each[1].transpose(1, 2, 3, 0), atol=1e-5)


def test_frames_run_as_they_lie_in_the_file(tmp_path, coil_kspace):
    full = np.zeros((16, 12, 1, 2, 2, 3), np.complex64)  # maps 2, echoes 3
    data = coil_kspace((16, 12), 2)
    for m, e in np.ndindex(2, 3):
        full[:, :, 0, :, m, e] = data.transpose(1, 2, 0) * (1 + m + 2 * e)
    write_cfl(tmp_path / "s", full)
    for frame in range(6):
        assert np.allclose(read_kspace(tmp_path / "s", frame=frame).data, data * (1 + frame))


def test_what_was_not_measured_is_zero(tmp_path, coil_kspace):
    data = coil_kspace((32, 24))
    lines = np.arange(32) % 3 == 0
    lines[12:20] = True
    write_cfl(tmp_path / "u", (data * lines[:, None]).transpose(1, 2, 0)[None])
    found = read_kspace(tmp_path / "u")
    assert np.array_equal(found.sampling, np.broadcast_to(lines[:, None], (32, 24)))


def test_a_dead_coil_is_kept_a_coil_with_a_hole_is_not(tmp_path, coil_kspace):
    data = coil_kspace((32, 24))
    data[2] = 0
    write_cfl(tmp_path / "dead", data.transpose(1, 2, 0)[None])
    assert read_kspace(tmp_path / "dead").n_coils == 4
    data[1, 7] = 0
    write_cfl(tmp_path / "hole", data.transpose(1, 2, 0)[None])
    assert "coil 1 is zero at 24 places" in refusal(tmp_path / "hole")
    data = coil_kspace((32, 24))
    data[1, 7, 3] = 0  # a small number that was rounded
    write_cfl(tmp_path / "zero", data.transpose(1, 2, 0)[None])
    assert read_kspace(tmp_path / "zero").sampling.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1j * np.nan])
def test_not_a_number_names_its_coil(tmp_path, coil_kspace, bad):
    data = coil_kspace((16, 12))
    data[3, 5, 4] = bad
    write_cfl(tmp_path / "n", data.transpose(1, 2, 0)[None])
    assert "coil 3 holds NaN or infinite values, the first at (5, 4)" in refusal(tmp_path / "n")


def test_bart_files_that_disagree(tmp_path, coil_kspace):
    good = coil_kspace((16, 12)).transpose(1, 2, 0)[None]
    write_cfl(tmp_path / "a", good)
    (tmp_path / "a.hdr").unlink()
    assert ".hdr file is missing" in refusal(tmp_path / "a.cfl")
    write_cfl(tmp_path / "b", good)
    (tmp_path / "b.cfl").unlink()
    for name in ("b", "b.hdr"):
        assert ".cfl file is missing" in refusal(tmp_path / name)
    write_cfl(tmp_path / "c", good, (1, 16, 12, 5))
    assert "holds 6144 bytes, its header says 1 x 16 x 12 x 5 = 7680" in refusal(tmp_path / "c")
    write_cfl(tmp_path / "z", np.zeros((1, 16, 12, 4)))
    assert "zero everywhere" in refusal(tmp_path / "z")
    assert "does not exist" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize(
    "dims",
    ["", "0 4 4", "-1 4", "4 x", "1e3 2", "9" * 40, " ".join(["2"] * 17), "99999999 " * 8, "²"],
)
def test_damaged_dimensions_allocate_nothing(tmp_path, dims):
    (tmp_path / "d.hdr").write_text(f"# Dimensions\n{dims}\n")
    (tmp_path / "d.cfl").write_bytes(bytes(64))
    tracemalloc.start()
    refusal(tmp_path / "d")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_axes_in_the_wrong_order_are_told(tmp_path, coil_kspace):
    data = coil_kspace((48, 40), 8)
    write_cfl(tmp_path / "o", data[..., None].transpose(3, 0, 1, 2))
    assert "wrong axis order" in refusal(tmp_path / "o")
    found = read_kspace(tmp_path / "o", axes="coil,ky,kx")
    assert np.array_equal(found.data, data)
    lines = np.arange(48) % 4 == 0
    lines[18:30] = True
    np.save(tmp_path / "o.npy", data * lines[:, None])
    for axes in ("ky,coil,kx", "ky,kx,coil", "kx,coil,ky"):
        assert "wrong axis order" in refusal(tmp_path / "o.npy", axes=axes)
    assert np.array_equal(
        read_kspace(tmp_path / "o.npy", axes="coil,kx,ky").data,
        (data * lines[:, None]).transpose(0, 2, 1),
    )


def test_dc_at_the_corner_is_told(tmp_path, coil_kspace):
    data = np.fft.ifftshift(coil_kspace((32, 24)), (1, 2))
    np.save(tmp_path / "c.npy", data)
    text = refusal(tmp_path / "c.npy", axes="coil,ky,kx")
    assert "ky peaks at index 0 of 32" in text or "ky peaks at index 31 of 32" in text
    assert "fftshift" in text


def test_npy_needs_names_and_complex_numbers(tmp_path, coil_kspace):
    data = coil_kspace((16, 12))
    np.save(tmp_path / "a.npy", data)
    assert "--axes coil,ky,kx" in refusal(tmp_path / "a.npy")
    found = read_kspace(tmp_path / "a.npy", axes="coil, ky, kx")
    assert isinstance(found.data, np.memmap)
    np.save(tmp_path / "r.npy", np.abs(data))
    assert "holds float32, k-space is complex" in refusal(tmp_path / "r.npy", axes="coil,ky,kx")
    np.save(tmp_path / "d.npy", np.asfortranarray(data.astype(np.complex128)))
    assert read_kspace(tmp_path / "d.npy", axes="coil,ky,kx").data.dtype == np.complex64
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(content[:-8])
    assert "is cut short" in refusal(tmp_path / "t.npy", axes="coil,ky,kx")
    np.save(tmp_path / "o.npy", np.array([1j, {}], object), allow_pickle=True)
    assert "k-space is complex" in refusal(tmp_path / "o.npy", axes="coil,ky,kx")


@pytest.mark.parametrize("axes", ["coil", "coil,ky", "coil,ky,kx,kz", "a,ky,kx", "ky,ky,kx", ""])
def test_axes_that_make_no_sense_are_a_wrong_call(tmp_path, coil_kspace, axes):
    np.save(tmp_path / "a.npy", coil_kspace((16, 12)))
    with pytest.raises(UsageError):
        read_kspace(tmp_path / "a.npy", axes=axes)


def test_one_coil_and_slices_of_npy(tmp_path, coil_kspace):
    data = np.stack([coil_kspace((16, 12), 1, seed)[0] for seed in range(3)])
    np.save(tmp_path / "s.npy", data)
    found = read_kspace(tmp_path / "s.npy", axes="slice,ky,kx")
    assert found.encoded == (True, True, False)
    assert np.array_equal(found.data[0], data.transpose(1, 2, 0))


def write_fastmri(path, data, *, header=True, **more):
    with h5py.File(path, "w") as file:
        file["kspace"] = data
        if header:
            xml = FASTMRI_XML.format(x=data.shape[-2], y=data.shape[-1], fx=280, fy=180, r=16)
            file["ismrmrd_header"] = xml
        for name, value in more.items():
            file[name] = value
        file.attrs["patient_id"] = "DOE^JANE"
    return path


def test_fastmri_volume(tmp_path, coil_kspace):
    data = np.stack([coil_kspace((40, 18), 3, seed) for seed in range(2)])
    found = read_kspace(write_fastmri(tmp_path / "k.h5", data))
    assert np.array_equal(found.data, data.transpose(1, 2, 3, 0))
    assert isinstance(found.data, np.memmap)
    assert found.encoded == (True, True, False)
    assert found.matrix == (16, 16, 2)
    assert found.geometry.spacing == pytest.approx((7.0, 10.0, 4.5))
    assert found.nominal
    assert "DOE" not in repr((found.name, found.warnings, found.origin))


def test_fastmri_mask_single_coil_and_compression(tmp_path, coil_kspace):
    data = np.stack([coil_kspace((40, 18), 1, seed)[0] for seed in range(2)])
    columns = np.arange(18) % 2 == 0
    columns[7:11] = True
    path = write_fastmri(tmp_path / "s.h5", data * columns, header=False, mask=columns * 1.0)
    found = read_kspace(path)
    assert found.n_coils == 1
    assert np.array_equal(found.sampling[0, :, 0], columns)
    assert found.geometry.spacing == (1.0, 1.0, 1.0)
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file.create_dataset("kspace", data=data[:1, None], compression="gzip")
    assert read_kspace(tmp_path / "z.h5").encoded == (True, True)


def test_fastmri_that_is_damaged(tmp_path, coil_kspace):
    data = np.stack([coil_kspace((40, 18), 2, seed) for seed in range(2)])
    path = write_fastmri(tmp_path / "k.h5", data, mask=np.ones(7))
    assert "its mask has shape (7,) for 18 columns" in refusal(path)
    content = path.read_bytes()
    (tmp_path / "t.h5").write_bytes(content[: len(content) // 2])
    assert "HDF5 is damaged" in refusal(tmp_path / "t.h5")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("kspace", (900, 30, 2000, 2000), np.complex64, chunks=(1, 1, 50, 50))
    assert "is stored in 0 bytes" in refusal(tmp_path / "bomb.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["kspace"] = h5py.ExternalLink(str(path), "kspace")
    assert "is a link" in refusal(tmp_path / "link.h5")
    with h5py.File(tmp_path / "ext.h5", "w") as file:
        outside = [(str(path), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("kspace", data.shape, np.complex64, external=outside)
    assert "lies in other files" in refusal(tmp_path / "ext.h5")
    with h5py.File(tmp_path / "real.h5", "w") as file:
        file["kspace"] = np.abs(data)
    assert "k-space is complex" in refusal(tmp_path / "real.h5")
    xml = "<!DOCTYPE a [<!ENTITY b 'c'>]><ismrmrdHeader/>"
    path = write_fastmri(tmp_path / "dtd.h5", data, header=False, ismrmrd_header=xml)
    assert "declares a document type" in refusal(path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = np.ones(3)
    assert "HDF5 without k-space" in refusal(tmp_path / "other.h5")


def test_images_and_other_vendors_are_turned_away(tmp_path, nifti):
    assert "magnitude images hold no raw k-space" in refusal(nifti(np.ones((4, 4, 4), np.float32)))
    assert "magnitude images" in refusal(tmp_path)
    (tmp_path / "P12345.7").write_bytes(np.float32(26.0).tobytes() + bytes(9000))
    assert "GE P-file" in refusal(tmp_path / "P12345.7")
    (tmp_path / "scan.list").write_bytes(b"# === DATA DESCRIPTION FILE ===\n")
    assert "Philips" in refusal(tmp_path / "scan.list")
    (tmp_path / "x.dat").write_bytes(b"hello world, nothing to see here" * 40)
    assert "no raw data that are known" in refusal(tmp_path / "x.dat")
    (tmp_path / "e.dat").write_bytes(b"")
    assert "is empty" in refusal(tmp_path / "e.dat")


def test_raw_data_are_told_from_images(tmp_path, coil_kspace, nifti):
    np.save(tmp_path / "k.npy", coil_kspace((16, 12)))
    np.save(tmp_path / "i.npy", np.ones((16, 12), np.float32))
    write_cfl(tmp_path / "c", coil_kspace((16, 12)).transpose(1, 2, 0)[None])
    assert is_raw(tmp_path / "k.npy")
    assert is_raw(tmp_path / "c")
    assert not is_raw(tmp_path / "i.npy")
    assert not is_raw(nifti(np.ones((4, 4, 4), np.float32)))
    assert not is_raw(tmp_path / "nothing")


def test_formats_that_name_their_axes_take_none(tmp_path, coil_kspace):
    path = write_fastmri(tmp_path / "k.h5", coil_kspace((40, 18), 3)[None])
    for words in ({"axes": "coil,ky,kx"}, {"trajectory": "radial-360"}):
        with pytest.raises(UsageError, match="this format states its"):
            read_kspace(path, **words)


def test_a_file_is_never_written_to(tmp_path, coil_kspace):
    np.save(tmp_path / "k.npy", coil_kspace((16, 12)))
    write_cfl(tmp_path / "c", coil_kspace((16, 12)).transpose(1, 2, 0)[None])
    write_fastmri(tmp_path / "f.h5", coil_kspace((40, 18), 3)[None])
    files = sorted(tmp_path.iterdir())
    for file in files:
        file.chmod(0o444)
    before = [(hashlib.sha256(f.read_bytes()).digest(), f.stat().st_mtime_ns) for f in files]
    read_kspace(tmp_path / "k.npy", axes="coil,ky,kx")
    read_kspace(tmp_path / "c")
    read_kspace(tmp_path / "f.h5")
    assert before == [
        (hashlib.sha256(f.read_bytes()).digest(), f.stat().st_mtime_ns) for f in files
    ]
    assert sorted(tmp_path.iterdir()) == files


def spokes_of_a_disk(n_shots, n_samples, oversampling, radius, turn=2.0):
    """A disk of a radius in units of the field of view, off centre: its k-space on spokes."""
    from scipy.special import j1

    angle = turn * np.pi * np.arange(n_shots)[:, None] / n_shots
    k = (np.arange(n_samples) - n_samples // 2)[None] / oversampling
    safe = np.where(k == 0, 1, 2 * np.pi * np.abs(k) * radius)
    bessel = np.where(k == 0, 0.5, j1(safe) / safe)
    shift = np.exp(-2j * np.pi * k * (0.03 * np.cos(angle) + 0.02 * np.sin(angle)))
    data = bessel * shift * 100
    noise = np.random.default_rng(0).standard_normal((2, 2, *data.shape))
    return (np.stack([data, 1j * data]) + 1e-3 * (noise[0] + 1j * noise[1])).astype(np.complex64)


@pytest.mark.parametrize(("oversampling", "side"), [(2.0, 32), (1.0, 64)])
@pytest.mark.parametrize("order", ["samples first", "bart", "npy"])
def test_radial_grid_follows_the_field_of_view(tmp_path, oversampling, side, order):
    data = spokes_of_a_disk(21, 64, oversampling, 0.4)  # (coil, shot, sample)
    words = {"trajectory": "radial-360"}
    if order == "npy":
        np.save(tmp_path / "r.npy", data)
        path, words["axes"] = tmp_path / "r.npy", "coil,shot,sample"
    else:
        bart = data.transpose(2, 1, 0)
        bart = bart[:, :, None] if order == "samples first" else bart[None]
        path = write_cfl(tmp_path / "r", bart)
    found = read_kspace(path, **words)
    assert np.array_equal(found.data, data)
    assert found.geometry.shape == (side, side)
    assert found.oversampling == oversampling
    assert found.trajectory.shape == (21, 64, 2)
    assert np.abs(found.trajectory).max() == pytest.approx(side / 2, rel=0.01)
    assert "not Cartesian" in refusal(path, **({"axes": "coil,ky,kx"} if order == "npy" else {}))


def test_half_and_full_circles_differ(tmp_path):
    full = trajectory.spokes("radial-360", 4, 8, 1.0)
    half = trajectory.spokes("radial-180", 4, 8, 1.0)
    assert np.allclose(full[2], -full[0], atol=1e-6)
    assert np.allclose(half[2], full[1], atol=1e-6)
    assert full[0, 4].tolist() == [0, 0]


def test_a_trajectory_file_of_either_kind(tmp_path):
    data = spokes_of_a_disk(9, 32, 2.0, 0.3, turn=1.0)
    path = write_cfl(tmp_path / "r", data.transpose(2, 1, 0)[None])
    where = trajectory.spokes("radial-180", 9, 32, 2.0)
    np.save(tmp_path / "t.npy", where)
    bart = np.zeros((3, 32, 9), np.complex64)
    bart[:2] = where.transpose(2, 1, 0)
    write_cfl(tmp_path / "t", bart)
    for name in ("t.npy", "t", "t.cfl"):
        found = read_kspace(path, trajectory=tmp_path / name)
        assert np.allclose(found.trajectory, where)
        assert found.geometry.shape == (16, 16)
        assert found.oversampling == pytest.approx(2.0)
    np.save(tmp_path / "bad.npy", where[:, :-1])
    assert "does not fit data" in refusal(path, trajectory=tmp_path / "bad.npy")
    np.save(tmp_path / "unit.npy", where / 32)
    assert "cycles per field of view" in refusal(path, trajectory=tmp_path / "unit.npy")
    assert "knows no 'radial-90'" in refusal(path, trajectory="radial-90")
    assert "cannot be read as a trajectory" in refusal(path, trajectory=tmp_path / "absent.npy")


@pytest.mark.data
def test_facts_of_the_given_arrays(data_folder):
    folder = data_folder / "kspace"
    full = read_kspace(folder / "bart_cfl/full")
    assert full.data.shape == (8, 230, 180)
    assert full.acceleration == 1.0
    cut = read_kspace(folder / "npy/cartesian_ksp.npy", axes="coil,ky,kx")
    assert 1 - cut.sampling.mean() == pytest.approx(0.876, abs=0.001)
    spokes = read_kspace(folder / "bart_cfl/kMB1_top_SP29.cfl", trajectory="radial-360")
    assert spokes.data.shape == (16, 29, 384)
    assert spokes.geometry.shape == (192, 192)
    with pytest.raises(InputError, match="not Cartesian"):
        read_kspace(folder / "bart_cfl/kMB1_top_SP29.cfl")


def test_a_mapped_file_is_forgotten_and_read_again(tmp_path):
    values = np.arange(4096, dtype=np.complex64).reshape(64, 64)
    values.tofile(tmp_path / "a.bin")
    mapped = np.memmap(tmp_path / "a.bin", np.complex64, "r", shape=(64, 64))
    view = mapped[3:].T
    forget(view)
    forget(values)
    assert np.array_equal(view, values[3:].T)
