"""ISMRMRD files: counters to a grid, geometry to an affine, and what is refused."""

import contextlib
import hashlib
import tracemalloc

import h5py
import ismrmrd
import numpy as np
import pytest

from medssl.core.errors import InputError, MedsslError
from medssl.io import mrd_header, readouts, trajectory
from medssl.io.kspace import read_kspace

XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientName>DOE^JANE</patientName></subjectInformation>
<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth>
</acquisitionSystemInformation><encoding>
<encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{rx}</x><y>{ry}</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>{rfx}</x><y>{rfy}</y><z>{fz}</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>9</maximum>
<center>{centre}</center></kspace_encoding_step_1></encodingLimits>
<trajectory>{trajectory}</trajectory>
<parallelImaging><accelerationFactor><kspace_encoding_step_1>{r}</kspace_encoding_step_1>
<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
<calibrationMode>{calibration}</calibrationMode></parallelImaging></encoding></ismrmrdHeader>"""


def facts(shape, **other):
    y, x, *z = shape
    known = {"x": x, "y": y, "z": z[0] if z else 1, "fx": 2.0 * x, "fy": 3.0 * y, "fz": 5.0}
    known |= {"rx": x, "ry": y, "rfx": 2.0 * x, "rfy": 3.0 * y, "centre": y // 2, "r": 1}
    return known | {"trajectory": "cartesian", "calibration": "other", "bandwidth": 1} | other


def line(data, ky=0, *, flags=(), centre=None, **head):
    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, np.complex64))
    acquisition.idx.kspace_encode_step_1 = ky
    acquisition.center_sample = data.shape[1] // 2 if centre is None else centre
    acquisition.read_dir, acquisition.phase_dir = (1, 0, 0), (0, 1, 0)
    acquisition.slice_dir, acquisition.position = (0, 0, 1), (0, 0, 0)
    for flag in flags:
        acquisition.setFlag(flag)
    for name, value in head.items():
        if name.startswith("idx_"):
            setattr(acquisition.idx, name.removeprefix("idx_"), value)
        else:
            setattr(acquisition, name, value if np.isscalar(value) else tuple(value))
    return acquisition


def write(path, lines, header, xml=XML):
    file = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    file.write_xml_header(xml.format(**header))
    for one in lines:
        file.append_acquisition(one)
    file.close()
    return path


def plane(data, **head):
    return [line(data[:, ky], ky, **head) for ky in range(data.shape[1])]


def refusal(path, **words) -> str:
    with pytest.raises(MedsslError) as caught:
        read_kspace(path, **words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plane_comes_back_with_its_geometry(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 3)
    head = {"position": (10.0, -20.0, 30.0)}
    path = write(tmp_path / "a.h5", plane(data, **head), facts((18, 24), r=2))
    path.chmod(0o444)
    before = hashlib.sha256(path.read_bytes()).digest()
    found = read_kspace(path)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert np.allclose(found.data, data)
    assert (found.encoded, found.nominal, found.warnings) == ((True, True), False, ())
    assert found.stated_acceleration == 2.0
    expected = np.array([[0, -2, 0, 0], [-3, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1.0]])
    expected[:3, 3] = [-10 + 2 * 12, 20 + 3 * 9, 30]
    assert np.allclose(found.geometry.affine, expected, atol=1e-6)
    assert "DOE" not in repr((found.name, found.warnings, found.origin))


@pytest.mark.parametrize("shape", [(17, 25), (18, 25), (17, 24)])
@pytest.mark.parametrize("short", [0, 7])
def test_odd_sizes_keep_their_centre(tmp_path, coil_kspace, shape, short):
    data = coil_kspace(shape, 2)
    lines = [
        line(data[:, y, short:], y, centre=shape[1] // 2 - short, position=(1.0, 2.0, 3.0))
        for y in range(shape[0])
    ]
    found = read_kspace(write(tmp_path / "odd.h5", lines, facts(shape)))
    assert found.data.shape == data.shape
    assert np.allclose(found.data[..., short:], data[..., short:])
    assert np.allclose(found.geometry.world([shape[0] // 2, shape[1] // 2, 0]), (-1, -2, 3))
    assert found.warnings == ()


def test_oblique_slices_in_any_order_match_a_matrix_made_by_hand(tmp_path, coil_kspace):
    angle, tilt = np.radians(25), np.radians(-40)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    turn = turn @ np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    read, phase, normal = turn[:, 0], -turn[:, 1], turn[:, 2]  # left-handed on purpose
    origin, gap = np.array([12.0, -7.0, 33.0]), 6.5
    at = {0: 2, 1: 0, 2: 3, 3: 1}  # counter to place along the normal
    scans = [coil_kspace((18, 24), 2, seed) for seed in range(4)]
    lines = []
    for counter, place in at.items():
        head = {"read_dir": read, "phase_dir": phase, "slice_dir": normal, "idx_slice": counter}
        lines += plane(scans[place], position=origin + gap * place * normal, **head)
    found = read_kspace(write(tmp_path / "o.h5", lines, facts((18, 24))))
    assert np.allclose(found.data, np.stack(scans, -1))
    assert found.encoded == (True, True, False)
    expected = np.eye(4)
    expected[:3, 0], expected[:3, 1], expected[:3, 2] = 3 * phase, 2 * read, gap * normal
    expected[:3, 3] = origin - 3 * phase * 9 - 2 * read * 12
    expected = np.diag([-1, -1, 1, 1]) @ expected
    assert np.allclose(found.geometry.affine, expected, atol=1e-5)
    assert not found.nominal


def test_slices_at_unequal_distances_are_refused(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 1)
    lines = []
    for s, z in enumerate((0, 5, 12)):
        lines += plane(data, position=(0, 0, z), idx_slice=s)
    assert "7.00 mm apart" in refusal(write(tmp_path / "g.h5", lines, facts((18, 24))))


def test_a_volume_has_its_position_in_the_middle(tmp_path, coil_kspace):
    data = coil_kspace((18, 24, 10), 2)
    lines = [
        line(data[:, y, :, z], y, idx_kspace_encode_step_2=z) for z in range(10) for y in range(18)
    ]
    found = read_kspace(write(tmp_path / "v.h5", lines, facts((18, 24, 10), fz=40.0)))
    assert found.encoded == (True, True, True)
    assert np.allclose(found.data, data)
    assert np.allclose(found.geometry.world([9, 12, 5]), 0)
    assert found.geometry.spacing == pytest.approx((3, 2, 4))


def test_oversampling_goes_and_phase_oversampling_is_cut_later(tmp_path, coil_kspace):
    data = coil_kspace((18, 48), 2)
    image = readouts.centred_fft(data, inverse=True)
    header = facts((18, 48), rx=24, rfx=48.0, ry=14, rfy=42.0)
    found = read_kspace(write(tmp_path / "s.h5", plane(data), header))
    assert found.oversampling == 2.0
    assert found.geometry.spacing == pytest.approx((3, 2))
    assert found.matrix == (14, 24)
    cut = readouts.centred_fft(found.data, inverse=True)
    assert np.allclose(cut, image[..., 12:36], atol=1e-5)


def test_partial_fourier_and_a_short_echo_leave_zeros(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    lines = [line(data[:, y, 6:], y - 5, centre=6) for y in range(5, 18)]
    found = read_kspace(write(tmp_path / "p.h5", lines, facts((18, 24), centre=4)))
    assert found.data.shape == (2, 18, 24)
    assert np.allclose(found.data[:, 5:, 6:], data[:, 5:, 6:])
    expected = np.zeros((18, 24), bool)
    expected[5:, 6:] = True
    assert np.array_equal(found.sampling, expected)
    assert not found.data[:, ~expected].any()


def test_averages_are_averaged_and_other_repeats_refused(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    lines = plane(data * 0.5) + plane(data * 1.5, idx_average=1)
    assert np.allclose(read_kspace(write(tmp_path / "a.h5", lines, facts((18, 24)))).data, data)
    lines = [*plane(data), line(data[:, 7], 7)]
    text = refusal(write(tmp_path / "r.h5", lines, facts((18, 24))))
    assert "line 7 of partition 0, slice 0 was measured 2 times, all as average 0" in text


def test_a_frame_must_be_chosen(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    lines = plane(data) + plane(data * 2, idx_contrast=1) + plane(data * 3, idx_repetition=1)
    path = write(tmp_path / "f.h5", lines, facts((18, 24)))
    text = refusal(path)
    assert "holds 3 frames (echo x repetition)" in text
    assert "--frame N, 0 to 2" in text
    for frame, factor in enumerate((1, 3, 2)):
        assert np.allclose(read_kspace(path, frame=frame).data, factor * data)


def test_noise_is_scaled_to_the_bandwidth_of_the_image(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 4000)) + 1j * rng.standard_normal((2, 4000))
    flags = [ismrmrd.ACQ_IS_NOISE_MEASUREMENT]
    lines = [line(noise, flags=flags, sample_time_us=2.0), *plane(data, sample_time_us=8.0)]
    header = facts((18, 24), bandwidth=0.8)
    found = read_kspace(write(tmp_path / "n.h5", lines, header))
    assert found.noise.shape == (2, 4000)
    assert found.noise.real.std() == pytest.approx(np.sqrt(2.0 / 8.0 / 0.8), rel=0.02)
    wrong = [line(noise[:1], flags=flags), *plane(data)]
    found = read_kspace(write(tmp_path / "w.h5", wrong, facts((18, 24))))
    assert found.noise is None
    assert "noise scan has 1 coils, the image 2" in found.warnings[0]


def test_lines_come_from_the_trajectory_where_counters_are_unset(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 1)
    lines = []
    for ky in range(18):
        track = np.stack([np.arange(24) / 24 - 0.5, np.full(24, ky / 18 - 0.5)], 1)
        one = ismrmrd.Acquisition.from_array(data[:, ky], track.astype(np.float32))
        one.center_sample = 12
        lines.append(one)
    found = read_kspace(write(tmp_path / "t.h5", lines, facts((18, 24), trajectory="Cartesian")))
    assert np.allclose(found.data, data)


@pytest.mark.parametrize("unit", [1.0, 1 / 16])
def test_spokes_with_their_stored_trajectory(tmp_path, coil_kspace, unit):
    data = coil_kspace((9, 32), 2)  # (coil, shot, sample), twice oversampled: 16 x 16
    where = trajectory.spokes("radial-180", 9, 32, 2.0)  # rows, columns
    lines = []
    for shot in range(9):
        track = np.ascontiguousarray(where[shot, :, ::-1] * unit)  # kx, ky
        one = ismrmrd.Acquisition.from_array(data[:, shot], track)
        one.read_dir, one.phase_dir, one.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        one.idx.kspace_encode_step_1 = shot
        lines.append(one)
    header = facts((9, 32), trajectory="radial", rx=16, ry=16, fx=64.0, rfx=32.0)
    found = read_kspace(write(tmp_path / "r.h5", lines, header))
    assert np.allclose(found.data, data)
    assert np.allclose(found.trajectory, where, atol=1e-5)
    assert found.geometry.shape == (16, 16)
    assert found.geometry.spacing == pytest.approx((2, 2))
    assert np.allclose(found.geometry.world([8, 8, 0]), 0)
    assert (found.oversampling, found.nominal) == (2.0, False)
    lines[3].idx.slice = 1
    text = refusal(write(tmp_path / "s.h5", lines, header))
    assert "its trajectory is radial of several slices" in text


@pytest.mark.parametrize(
    "head",
    [
        {"read_dir": (np.nan, 0, 0)},
        {"read_dir": (1e38, 1e38, 0)},
        {"phase_dir": (1, 0, 0)},
        {"slice_dir": (0, 0, 0)},
        {"position": (0, 0, 1e5)},
        {"position": (np.inf, 0, 0)},
    ],
)
def test_garbage_geometry_is_nominal_with_one_warning(tmp_path, coil_kspace, head):
    path = write(tmp_path / "g.h5", plane(coil_kspace((18, 24), 1), **head), facts((18, 24)))
    found = read_kspace(path)
    assert found.nominal
    assert found.geometry.spacing == pytest.approx((3, 2))
    assert len(found.warnings) == 1


def test_calibration_lines_and_what_is_no_image(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    calibration, both = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, 21
    lines = [line(data[:, y], y) for y in range(0, 18, 2)]
    extra = [line(data[:, y], y, flags=[calibration]) for y in (7, 9, 11)]
    lines[4].setFlag(both)
    junk = [line(data[:, 0], 0, flags=[f]) for f in (23, 26, 27, 28)]
    embedded = write(
        tmp_path / "e.h5", lines + extra + junk, facts((18, 24), calibration="embedded")
    )
    assert read_kspace(embedded).sampling[:, 0].sum() == 12
    separate = write(tmp_path / "s.h5", lines + extra, facts((18, 24), calibration="separate"))
    found = read_kspace(separate)
    assert found.sampling[:, 0].sum() == 9
    assert "separate calibration scan was not used" in found.warnings[-1]
    assert "no imaging acquisitions" in refusal(write(tmp_path / "j.h5", junk, facts((18, 24))))


def test_a_wrong_matrix_makes_the_geometry_nominal(tmp_path, coil_kspace):
    data = coil_kspace((36, 24), 2)
    header = facts((18, 12), fx=72.0, fy=72.0, rfx=72.0, rfy=72.0, centre=0)
    found = read_kspace(write(tmp_path / "m.h5", plane(data), header))
    assert np.allclose(found.data, data)
    assert found.nominal
    assert found.geometry.spacing == pytest.approx((2, 3))
    assert (
        "matrix 18 contradicts 36 lines; the header's matrix 12 contradicts 24" in found.warnings[0]
    )


def test_counters_outside_the_matrix_are_named(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    lines = plane(data)
    lines[5].idx.kspace_encode_step_1 = 20000
    path = write(tmp_path / "c.h5", lines, facts((18, 24), centre=0))
    tracemalloc.start()
    text = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "line counter 20000 lies outside the matrix of 18" in text
    assert peak < 2**22
    lines = plane(data)
    lines[5].idx.slice = 7
    text = refusal(write(tmp_path / "s.h5", lines, facts((18, 24))))
    assert "slice counter 7 has 1 lines, another slice 17" in text
    lines[5] = line(coil_kspace((18, 240), 2)[:, 5], 5)
    text = refusal(write(tmp_path / "n.h5", lines, facts((18, 24))))
    assert "line 5 claims 240 samples, others 24" in text
    lines = plane(data)
    lines[3].center_sample = 99
    assert "centre column 99 of line 3" in refusal(write(tmp_path / "d.h5", lines, facts((18, 24))))


def test_a_lost_line_is_not_measured(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    lines = plane(data)
    del lines[2]
    found = read_kspace(write(tmp_path / "l.h5", lines, facts((18, 24))))
    assert not found.sampling[2].any()
    assert found.acceleration == pytest.approx(18 / 17)


def test_not_a_number_in_a_coil(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    data[1, 4, 4] = np.nan
    text = refusal(write(tmp_path / "n.h5", plane(data), facts((18, 24))))
    assert "coil 1 holds NaN" in text


def test_bad_files_get_one_line(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    spiral = write(tmp_path / "s.h5", plane(data), facts((18, 24), trajectory="spiral"))
    assert "its trajectory is spiral, but not stored for every sample" in refusal(spiral)
    path = write(tmp_path / "x.h5", plane(data), facts((18, 24)), xml="<!DOCTYPE a><a>{x}</a>")
    assert "document type" in refusal(path)
    path = write(tmp_path / "y.h5", plane(data), facts((18, 24)), xml="not xml {x}")
    assert "XML header is damaged" in refusal(path)
    lines = plane(data)
    lines[6] = line(coil_kspace((18, 24), 3)[:, 6], 6)
    assert "line 6 has 3 coils, others 2" in refusal(
        write(tmp_path / "c.h5", lines, facts((18, 24)))
    )
    with h5py.File(tmp_path / "b.h5", "w") as file:
        group = file.create_group("dataset")
        group["xml"] = XML.format(**facts((18, 24)))
        with h5py.File(path, "r") as good:
            kind = good["dataset/data"].dtype
        group.create_dataset("data", (10**9,), kind, chunks=(1000,))
    assert "stored in 0 bytes" in refusal(tmp_path / "b.h5")


def test_fuzzed_bytes_never_allocate_much(tmp_path, coil_kspace):
    good = write(tmp_path / "g.h5", plane(coil_kspace((18, 24), 2)), facts((18, 24))).read_bytes()
    rng = np.random.default_rng(5)
    path = tmp_path / "f.h5"
    for _ in range(60):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), 20):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        tracemalloc.start()
        with contextlib.suppress(MedsslError):
            read_kspace(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(good) + 2**21


def test_header_leaves_out_what_the_file_does():
    header = mrd_header.parse("<ismrmrdHeader/>")
    assert header.encoded is None
    assert header.acceleration is None
    with pytest.raises(InputError, match="damaged"):
        mrd_header.parse("<ismrmrdHeader>")


def test_samples_on_ramps_come_back_to_the_even_grid():
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal(40) + 1j * rng.standard_normal(40)
    share = readouts.trapezoid(160, 240, 160, 32, 496, 80)
    assert share[0] == pytest.approx(-share[-1])
    assert (np.diff(share) > 0).all()
    k = share * 40
    x = (np.arange(40) - 20) / 40
    samples = np.exp(-2j * np.pi * k[:, None] * x) @ pixels / np.sqrt(80)
    even = samples @ readouts.ramp_matrix(k, 40).T
    assert np.allclose(readouts.centred_fft(even, inverse=True), pixels, atol=0.02)


@pytest.mark.data
def test_facts_of_the_given_file(data_folder):
    found = read_kspace(data_folder / "kspace/ismrmrd/acqDataBrainSim100.h5")
    assert found.data.shape == (1, 256, 256)
    peak = np.unravel_index(np.abs(found.data[0]).argmax(), (256, 256))
    assert peak == (128, 128)
    assert found.nominal
    assert len(found.warnings) == 1
