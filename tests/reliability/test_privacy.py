"""Names of people stay inside DICOM outputs, where they belong."""

import contextlib
import zlib

import numpy as np
import pydicom
import pytest

from medssl.io.example_series import ct_series

PLANTED = {
    "PatientName": "SECRET^PERSON",
    "PatientID": "SECRETID",
    "PatientBirthDate": "19010203",
    "AccessionNumber": "SECRETACC",
    "InstitutionName": "SECRET HOSPITAL",
    "ReferringPhysicianName": "SECRET^DOCTOR",
    "StudyDescription": "SECRET STUDY",
    "SeriesDescription": "SECRET SERIES",
    "ProtocolName": "SECRET PROTOCOL",
    "StudyID": "SECRETSTUDY",
}
NEVER = [b"SECRET", b"19010203"]


@pytest.fixture
def secret(tmp_path):
    folder = tmp_path / "scan"
    rng = np.random.default_rng(0)
    ct_series(folder, rng.normal(40, 25, (40, 40, 5)).astype(np.float32), (1, 1, 3))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        for keyword, text in PLANTED.items():
            setattr(dataset, keyword, text)
        dataset.save_as(path)
    return folder


def inflated(content):
    """The bytes, and what its zlib streams hold."""
    found = [content]
    at = content.find(b"IDAT")
    while at >= 0:
        with contextlib.suppress(zlib.error):
            found.append(zlib.decompressobj().decompress(content[at + 4 :]))
        at = content.find(b"IDAT", at + 4)
    return b"".join(found)


@pytest.mark.parametrize("words", [[], ["--dry-run", "--json"], ["--sigma", "-1"], ["--to", "nii"]])
def test_nothing_leaks(medssl, secret, tmp_path, words):
    _, out, err = medssl("denoise", secret, "--residual", "--noise-map", *words)
    texts = [out.encode(), err.encode()]
    texts += [
        inflated(p.read_bytes())
        for p in tmp_path.iterdir()
        if p.is_file() and not p.name.endswith(".gz")
    ]
    for text in texts:
        assert not any(word in text for word in NEVER)
    for path in tmp_path.rglob("*"):
        assert "SECRET" not in path.name
    for path in (tmp_path / "scan_denoised").glob("*.dcm"):
        assert str(pydicom.dcmread(path).PatientName) == "SECRET^PERSON"


def test_the_network_is_not_used(medssl, secret, monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert medssl("denoise", secret, "-q")[0] == 0
