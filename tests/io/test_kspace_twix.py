"""Siemens raw data: written here byte by byte, read back, and what damage does."""

import contextlib
import hashlib
import sys
import tracemalloc

import numpy as np
import pytest
from twixtools import mdh_def

from medssl.core.errors import MedsslError
from medssl.io import twix, twix_header
from medssl.io.kspace import read_kspace
from medssl.io.readouts import centred_fft


def protocol(shape, **more):
    """The words of a protocol for (ky, kx) or (ky, kx, kz)."""
    slab = "sSliceArray.asSlice[0]."
    known = {
        "sKSpace.lBaseResolution": shape[1],
        "sKSpace.lPhaseEncodingLines": shape[0],
        "sKSpace.lPartitions": shape[2] if len(shape) == 3 else 16,
        "sKSpace.ucDimension": "0x4" if len(shape) == 3 else "0x2",
        f"{slab}dPhaseFOV": 3.0 * shape[0],
        f"{slab}dReadoutFOV": 2.0 * shape[1],
        f"{slab}dThickness": 5.0,
        f"{slab}sNormal.dTra": 1.0,
        "sRXSPEC.alDwellTime[0]": 8000,
        "sPat.lAccelFactPE": 1,
        "tPatientName": '"DOE^JANE"',
    }
    return {k: v for k, v in (known | more).items() if v is not None}


def header(words, oversampling=1.0, parameters=""):
    yaps = "".join(f"{name}\t = \t{value}\n" for name, value in words.items())
    yaps = f"### ASCCONV BEGIN ###\n{yaps}### ASCCONV END ###"
    factor = f'<ParamDouble."flReadoutOSFactor"> {{ <Precision> 16 {oversampling} }}\n'
    parts = {"Config": "<XProtocol> {}", "Meas": factor + parameters, "MeasYaps": yaps}
    body = b"".join(
        name.encode() + b"\0" + len(text).to_bytes(4, "little") + text.encode("latin-1")
        for name, text in parts.items()
    )
    length = -(-(8 + len(body)) // 32) * 32
    start = length.to_bytes(4, "little") + len(parts).to_bytes(4, "little")
    return (start + body).ljust(length, b"\0")


def readout(data, line=0, *, flags=(), old=False, centre=None, centre_line=None, **more):
    """One readout (coil, sample) with its headers."""
    head = mdh_def.VB17_header() if old else mdh_def.Scan_header()
    n_coils, n = data.shape
    head.SamplesInScan, head.UsedChannels = n, n_coils
    head.CenterCol = n // 2 if centre is None else centre
    head.CenterLin = centre_line or 0
    counter = mdh_def.LineCounter()
    counter.Lin = line
    for name in ("Sli", "Par", "Ave", "Eco", "Rep", "Set", "Phs"):
        setattr(counter, name, more.get(name, 0))
    head.Counter = counter
    place = mdh_def.SliceData()
    place.SlicePos = mdh_def.SlicePos(*more.get("position", (0, 0, 0)))
    head.SliceData = place
    for flag in flags:
        head.EvalInfoMask |= 1 << mdh_def.mask_dict[flag]
    samples = np.ascontiguousarray(data, "<c8")
    if old:
        return b"".join(bytes(head) + row.tobytes() for row in samples)
    channel = bytes(mdh_def.Channel_header())
    return bytes(head) + b"".join(channel + row.tobytes() for row in samples)


def end(old=False):
    return readout(np.zeros((1, 16)), flags=["ACQEND"], old=old)


def write(path, *measurements, length=True):
    """Measurements of (header, readouts) in one file."""
    table, bodies, at = bytearray(10240), [], 10240
    table[4:8] = len(measurements).to_bytes(4, "little")
    for index, (head, readouts) in enumerate(measurements):
        body = head + b"".join(readouts) + end()
        entry = 8 + 152 * index
        table[entry + 8 : entry + 16] = at.to_bytes(8, "little")
        table[entry + 16 : entry + 24] = (len(body) if length else 0).to_bytes(8, "little")
        table[entry + 24 : entry + 32] = b"DOE^JANE"
        bodies.append(body.ljust(-(-len(body) // 512) * 512, b"\0"))
        at += len(bodies[-1])
    path.write_bytes(bytes(table) + b"".join(bodies))
    return path


def plane(data, **more):
    return [readout(data[:, y], y, **more) for y in range(data.shape[1])]


def refusal(path, **words) -> str:
    with pytest.raises(MedsslError) as caught:
        read_kspace(path, **words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plane_comes_back_and_no_name_with_it(tmp_path, coil_kspace, capfd):
    data = coil_kspace((18, 24), 3)
    path = write(tmp_path / "meas.dat", (header(protocol((18, 24))), plane(data, centre_line=9)))
    path.chmod(0o444)
    before = hashlib.sha256(path.read_bytes()).digest()
    found = read_kspace(path)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert np.allclose(found.data, data)
    assert (found.encoded, found.nominal, found.warnings) == ((True, True), False, ())
    assert found.geometry.spacing == pytest.approx((3, 2))
    assert np.allclose(found.geometry.world([9, 12, 0]), 0)
    assert found.stated_acceleration == 1.0
    assert "DOE" not in repr((found.name, found.warnings, found.origin))
    assert capfd.readouterr() == ("", "")


def test_the_older_software_is_read(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 3)
    lines = plane(data, old=True, centre_line=9)
    path = tmp_path / "vb.dat"
    head = header(protocol((18, 24)), parameters=" " * 10240)  # never shorter on a scanner
    path.write_bytes(head + b"".join(lines) + end(old=True))
    assert np.allclose(read_kspace(path).data, data)


def test_oversampling_follows_the_header(tmp_path, coil_kspace):
    data = coil_kspace((18, 48), 2)
    words = protocol((18, 24))
    path = write(tmp_path / "o.dat", (header(words, 2.0), plane(data, centre_line=9)))
    found = read_kspace(path)
    assert found.oversampling == 2.0
    assert found.geometry.spacing == pytest.approx((3, 2))
    image = centred_fft(data, inverse=True)[..., 12:36]
    assert np.allclose(centred_fft(found.data, inverse=True), image, atol=1e-5)


def test_an_open_sequence_with_its_default_matrix(tmp_path, coil_kspace):
    data = coil_kspace((32, 28), 2)
    words = protocol((16, 14))
    path = write(tmp_path / "p.dat", (header(words), plane(data)), length=False)
    found = read_kspace(path)
    assert np.allclose(found.data, data)
    assert found.nominal
    assert found.geometry.spacing == pytest.approx((1.5, 1.0))
    assert "matrix 16 contradicts 32 lines" in found.warnings[0]
    assert len(found.warnings) == 1


def test_partial_fourier_and_a_short_echo_are_placed_by_their_centres(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    lines = [
        readout(data[:, y, 6:], y - 5, centre=6, centre_line=4, flags=[]) for y in range(5, 18)
    ]
    found = read_kspace(write(tmp_path / "p.dat", (header(protocol((18, 24))), lines)))
    assert np.allclose(found.data[:, 5:, 6:], data[:, 5:, 6:])
    assert found.sampling.sum() == 13 * 18
    assert not found.data[:, :5].any()


def test_slices_lie_along_the_normal_whatever_their_order(tmp_path, coil_kspace):
    tilt, turn = np.radians(20), np.radians(15)
    normal = np.array([0, np.sin(tilt), np.cos(tilt)])
    scans = [coil_kspace((18, 24), 2, seed) for seed in range(3)]
    words = protocol((18, 24))
    for index in range(3):
        slab = f"sSliceArray.asSlice[{index}]."
        place = (index - 1) * 6.0 * normal + [0, 0, 30]
        words |= {f"{slab}sNormal.dCor": normal[1], f"{slab}sNormal.dTra": normal[2]}
        words |= {f"{slab}sPosition.dCor": place[1], f"{slab}sPosition.dTra": place[2]}
        words[f"{slab}dInPlaneRot"] = turn
    lines = []
    for counter, index in enumerate((1, 2, 0)):  # measured in another order
        place = (index - 1) * 6.0 * normal + [0, 0, 30]
        lines += plane(scans[index], centre_line=9, Sli=counter, position=tuple(place))
    found = read_kspace(write(tmp_path / "s.dat", (header(words), lines)))
    assert np.allclose(found.data, np.stack(scans, -1))
    back, right = np.array([0, np.cos(tilt), -np.sin(tilt)]), np.array([-1.0, 0, 0])
    phase = -(np.cos(turn) * back - np.sin(turn) * right)
    read = -(np.cos(turn) * right + np.sin(turn) * back)
    expected = np.eye(4)
    expected[:3, :3] = np.column_stack([3 * phase, 2 * read, 6 * normal])
    expected[:3, 3] = -6 * normal + [0, 0, 30] - 9 * 3 * phase - 12 * 2 * read
    expected = np.diag([-1, -1, 1, 1]) @ expected
    assert np.allclose(found.geometry.affine, expected, atol=1e-6)


def test_positions_that_readouts_leave_unset(tmp_path, coil_kspace):
    slab = "sSliceArray.asSlice[0].sPosition."
    head = header(protocol((18, 24), **{f"{slab}dTra": 25.0}))
    data = coil_kspace((18, 24), 1)
    found = read_kspace(write(tmp_path / "one.dat", (head, plane(data, centre_line=9))))
    assert np.allclose(found.geometry.world([9, 12, 0]), (0, 0, 25))
    lines = plane(data, centre_line=9) + plane(data, centre_line=9, Sli=1)
    assert read_kspace(write(tmp_path / "two.dat", (head, lines))).nominal


@pytest.mark.parametrize("normal", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0.6, 0.64, 0.48)])
@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_directions_are_a_right_handed_frame(normal, turn):
    n = np.array(normal, float)
    phase, read = twix.in_plane(n, turn)
    frame = np.stack([phase, read, n])
    assert np.allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert np.allclose(np.cross(n, phase), read)


def test_a_volume(tmp_path, coil_kspace):
    data = coil_kspace((18, 24, 10), 2)
    lines = [
        readout(data[:, y, :, z], y, Par=z, centre_line=9) for z in range(10) for y in range(18)
    ]
    words = protocol((18, 24, 10), **{"sKSpace.dSliceOversamplingForDialog": 0.25})
    found = read_kspace(write(tmp_path / "v.dat", (header(words), lines)))
    assert found.encoded == (True, True, True)
    assert np.allclose(found.data, data)
    assert found.geometry.spacing == pytest.approx((3, 2, 0.625))
    assert found.matrix == (18, 24, 8)


def test_noise_of_an_earlier_measurement_and_of_the_same(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 3000)) + 1j * rng.standard_normal((2, 3000))
    scan = [readout(noise, flags=["NOISEADJSCAN"])]
    image = plane(data, centre_line=9)
    own = header(protocol((18, 24)))
    before = header(protocol((18, 24), **{"sRXSPEC.alDwellTime[0]": 2000}))
    found = read_kspace(write(tmp_path / "b.dat", (before, scan), (own, image)))
    assert np.allclose(found.data, data)
    assert found.noise.real.std() == pytest.approx(0.5, rel=0.05)
    found = read_kspace(write(tmp_path / "s.dat", (own, scan + image)))
    assert found.noise.real.std() == pytest.approx(1.0, rel=0.05)
    assert read_kspace(write(tmp_path / "n.dat", (own, image))).noise is None


def test_only_flagged_averages_are_averaged(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    head = header(protocol((18, 24)))
    lines = plane(0.5 * data, centre_line=9) + plane(1.5 * data, centre_line=9, Ave=1)
    assert np.allclose(read_kspace(write(tmp_path / "a.dat", (head, lines))).data, data)
    lines = [*plane(data, centre_line=9), readout(data[:, 3], 3, centre_line=9)]
    assert "line 3 of partition 0, slice 0 was measured 2 times" in refusal(
        write(tmp_path / "r.dat", (head, lines))
    )
    lines = plane(data, centre_line=9) + plane(2 * data, centre_line=9, Rep=1)
    path = write(tmp_path / "f.dat", (head, lines))
    assert "2 frames (repetition)" in refusal(path)
    assert np.allclose(read_kspace(path, frame=1).data, 2 * data)


def test_calibration_lines_belong_to_the_image_or_do_not(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    lines = [readout(data[:, y], y, centre_line=9) for y in range(0, 18, 2)]
    lines += [readout(data[:, y], y, centre_line=9, flags=["PATREFSCAN"]) for y in (7, 9, 11)]
    for mode, expected in ((2, 12), (4, 9)):
        words = protocol((18, 24), **{"sPat.lAccelFactPE": 2, "sPat.ucRefScanMode": f"0x{mode}"})
        found = read_kspace(write(tmp_path / f"{mode}.dat", (header(words), lines)))
        assert found.sampling[:, 0].sum() == expected
        assert found.stated_acceleration == 2.0


def test_odd_and_even_lines_of_an_echo_train_are_brought_together(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    x = np.arange(24) - 12
    wrong = np.exp(1j * (0.6 + 0.25 * x))
    bent = centred_fft(centred_fft(data, inverse=True) * wrong, inverse=False)
    lines = []
    for name, source in (("r", bent), ("f", data), ("r", bent)):
        flags = ["PHASCOR", "RTFEEDBACK"] + (["REFLECT"] if name == "r" else [])
        row = source[:, 9, ::-1] if name == "r" else source[:, 9]
        lines.append(readout(row, 9, flags=flags, Ave=len(lines) // 2))
    for y in range(18):
        odd = y % 2 == 1
        row = bent[:, y, ::-1] if odd else data[:, y]
        lines.append(readout(row, y, flags=["REFLECT"] if odd else [], centre_line=9))
    head = header(protocol((18, 24)))
    found = read_kspace(write(tmp_path / "e.dat", (head, lines)))
    assert np.allclose(found.data, data, atol=2e-3 * np.abs(data).max())
    found = read_kspace(write(tmp_path / "w.dat", (head, lines[3:])))
    assert "reversed lines without phase-correction lines" in found.warnings[-1]


def test_ramp_sampled_readouts_are_brought_to_the_even_grid(tmp_path, coil_kspace):
    from medssl.io.readouts import trapezoid

    data = coil_kspace((18, 24), 2)
    k = trapezoid(160, 240, 160, 32, 496, 48) * 24
    x = (np.arange(24) - 12) / 24
    image = centred_fft(data, inverse=True)
    samples = image @ np.exp(-2j * np.pi * k[:, None] * x).T / np.sqrt(48)
    times = {"alRegridMode": 2, "alRegridRampupTime": 160, "alRegridFlattopTime": 240}
    times |= {"alRegridRampdownTime": 160, "alRegridDelaySamplesTime": 32}
    times["aflRegridADCDuration"] = 496.0
    extra = "".join(f'<ParamLong."{n}"> {{ {v} 0 }}\n' for n, v in times.items())
    head = header(protocol((18, 24)), 2.0, extra)
    found = read_kspace(write(tmp_path / "r.dat", (head, plane(samples, centre_line=9))))
    assert np.allclose(found.data, data, atol=0.02 * np.abs(data).max())
    bad = header(protocol((18, 24)), 2.0, extra.replace("{ 496.0 0 }", "{ 900 0 }"))
    text = refusal(write(tmp_path / "b.dat", (bad, plane(samples, centre_line=9))))
    assert "900 us does not fit its gradient of 560 us" in text


@pytest.mark.parametrize(
    "words",
    [
        {"sSliceArray.asSlice[0].sNormal.dTra": 0.5},
        {"sSliceArray.asSlice[0].sNormal.dTra": None},
        {"sSliceArray.asSlice[0].dPhaseFOV": 0},
        {"sSliceArray.asSlice[0].dReadoutFOV": "1e99"},
        {"sSliceArray.asSlice[0].sPosition.dSag": 9999, "at": (9999, 0, 0)},
    ],
)
def test_garbage_geometry_is_nominal(tmp_path, coil_kspace, words):
    at = words.pop("at", (0, 0, 0))
    lines = plane(coil_kspace((18, 24), 1), centre_line=9, position=at)
    found = read_kspace(write(tmp_path / "g.dat", (header(protocol((18, 24), **words)), lines)))
    assert found.nominal
    assert len(found.warnings) == 1


def test_damage_is_named(tmp_path, coil_kspace):
    data = coil_kspace((18, 24), 2)
    head = header(protocol((18, 24)))
    good = write(tmp_path / "g.dat", (head, plane(data, centre_line=9))).read_bytes()
    path = tmp_path / "t.dat"
    path.write_bytes(good[: len(good) - 4000])
    assert "is cut short" in refusal(path)
    whole = write(tmp_path / "l.dat", (head, plane(data, centre_line=9)), length=False)
    path.write_bytes(whole.read_bytes()[: 10240 + len(head) + 5000])
    assert "is cut short or damaged at readout 8 (line 7)" in refusal(path)
    lines = plane(data, centre_line=9)
    lines[4] = readout(data[:, 4], 9000, centre_line=9)
    path = write(tmp_path / "c.dat", (head, lines))
    assert "line counter 9000 lies outside the matrix of 18" in refusal(path)
    lines[4] = readout(data[:, 4], 4, centre_line=9, centre=500)
    path = write(tmp_path / "d.dat", (head, lines))
    assert "centre column 500 of line 4" in refusal(path)
    lines[4] = readout(data[:1, 4], 4, centre_line=9)
    assert "line 4 has 1 coils, others 2" in refusal(write(tmp_path / "e.dat", (head, lines)))
    path = write(tmp_path / "n.dat", (head, [readout(data[:, 0], flags=["NOISEADJSCAN"])]))
    assert "holds no image lines" in refusal(path)


def test_fuzzed_bytes_never_allocate_much_nor_hang(tmp_path, coil_kspace):
    head = header(protocol((18, 24)))
    good = write(tmp_path / "g.dat", (head, plane(coil_kspace((18, 24), 2), centre_line=9)))
    content = good.read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "f.dat"
    for round_ in range(150):
        bad = bytearray(content)
        low, high = ((0, 40), (10240, 10240 + len(head)), (10240 + len(head), len(bad)))[round_ % 3]
        for at in rng.integers(low, high, 6):
            bad[at] = rng.integers(256)
        path.write_bytes(bad)
        tracemalloc.start()
        with contextlib.suppress(MedsslError):
            read_kspace(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * len(content) + 2**21


def test_header_numbers_are_found_and_bombs_are_not():
    words = {"sSliceArray.asSlice[999999999].dThickness": 1, "sKSpace.lBaseResolution": "0x20"}
    found = twix_header.parse(header(words | {"sKSpace.x": "1e999", "sKSpace.y": "abc"}))
    assert found.number("sKSpace.lBaseResolution") == 32
    assert found.number("sKSpace.x") == 0
    assert found.first("flReadoutOSFactor") == 1.0


def test_a_missing_twixtools_is_one_line(tmp_path, coil_kspace, monkeypatch):
    path = write(tmp_path / "meas.dat", (header(protocol((18, 24))), plane(coil_kspace((18, 24)))))
    monkeypatch.setitem(sys.modules, "twixtools", None)
    text = refusal(path)
    assert "reading Siemens raw data (meas.dat) needs twixtools" in text
    assert 'pip install "medssl[mri]"' in text


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "peak", "spacing", "oversampling", "nominal"),
    [
        ("pulseq_brain_flash_16ch", (16, 128, 128), (63, 63), (2, 2), 1.0, True),
        ("pulseq_brain_flash_2ch_bodycoil", (2, 128, 128), (63, 63), (2, 2), 1.0, True),
        ("twixtools_gre", (2, 160, 160), (80, 80), (1.25, 1.25), 2.0, False),
        ("twixtools_epi", (2, 80, 80), (39, 39), (2.5, 2.5), 2.0, False),
    ],
)
def test_facts_of_the_given_files(data_folder, name, shape, peak, spacing, oversampling, nominal):
    found = read_kspace(data_folder / f"kspace/siemens_twix/{name}.dat")
    assert found.data.shape == shape
    energy = (np.abs(found.data) ** 2).sum(0)
    at = np.unravel_index(energy.argmax(), energy.shape)
    assert np.abs(np.subtract(at, peak)).max() <= 1
    assert found.geometry.spacing == pytest.approx(spacing, abs=1e-5)
    assert (found.oversampling, found.nominal, found.acceleration) == (oversampling, nominal, 1.0)
    assert found.noise is None


@pytest.mark.data
def test_affine_of_the_phantom_and_of_its_echo_train(data_folder):
    folder = data_folder / "kspace/siemens_twix"
    gre, epi = (read_kspace(folder / f"twixtools_{name}.dat") for name in ("gre", "epi"))
    phase, read = np.array([0, -0.99926, 0.03839]), np.array([1.0, 0, 0])
    normal = np.array([0, 0.03839, 0.99926])
    position = np.array([-2.590, 53.922, -53.999])
    for found, n in ((gre, 160), (epi, 80)):
        expected = np.eye(4)
        expected[:3, :3] = np.column_stack([200 / n * phase, 200 / n * read, 4 * normal])
        expected[:3, 3] = position - 100 * phase - 100 * read
        expected = np.diag([-1, -1, 1, 1]) @ expected
        assert np.allclose(found.geometry.affine, expected, atol=1e-3)
    images = []
    for found in (gre, epi):
        image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(found.data, (1, 2))), (1, 2))
        rss = np.sqrt((np.abs(image) ** 2).sum(0))
        images.append(rss if len(rss) == 80 else rss.reshape(80, 2, 80, 2).mean((1, 3)))
    # the same phantom in the same place; 0.68 without regridding
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.9
    beside = images[0] < 0.1 * images[0].max()  # ghosts: 0.16 without phase correction
    assert images[1][beside].mean() < 0.13 * images[1][~beside].mean()
