"""The index of an archive: whose the files are, what changed, what splits, what never breaks it."""

import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medssl.core.errors import InputError, OutputError, UsageError
from medssl.data import archive, rows
from medssl.data.parts import Parts
from medssl.io import table

UID = "1.2.826.0.1.3680043.8.498."


def uid(name: str) -> str:
    """A UID from a name."""
    return UID + str(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))


@pytest.fixture
def ct(tmp_path) -> Callable[..., Path]:
    """Write one CT slice below `tmp_path/archive`; keywords change its tags."""

    def write(path: str, patient="P1", study="S1", series="A", number=1, **changes) -> Path:
        dataset = Dataset()
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = uid(f"{study}/{series}/{number}/{path}")
        dataset.Modality, dataset.PatientID = "CT", patient
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid(study), uid(study + series)
        dataset.FrameOfReferenceUID, dataset.InstanceNumber = uid("frame" + study), number
        dataset.ImagePositionPatient = [0, 0, 3 * number]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.Rows, dataset.Columns = [1, 1], 4, 4
        dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored = 1, 16, 12
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.PixelData = bytes(32)
        for keyword, value in changes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        target = tmp_path / "archive" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        pydicom.dcmwrite(target, dataset, enforce_file_format=True)
        return target

    return write


def run(tmp_path: Path, **options) -> archive.Indexed:
    return archive.index(tmp_path / "archive", tmp_path / "index", **options)


def series(tmp_path: Path) -> list[archive.SeriesRow]:
    return archive.series(tmp_path / "index")


def names(row: archive.SeriesRow) -> list[str]:
    return [path.name for path in row.paths]


def test_slices_become_series_of_patients(tmp_path, ct):
    for number in (2, 1, 3):
        ct(f"a/{number}.dcm", number=number)
    ct("b/1.dcm", series="B")
    ct("c/1.dcm", patient="P2", study="S2", SeriesDescription="t1 Topogram +C")
    found = run(tmp_path)
    assert (found.files, found.added, found.series, found.studies, found.patients) == (
        5,
        5,
        3,
        2,
        2,
    )
    assert found.modalities == {"CT": 5}
    assert (found.refused, found.warnings, found.fallback) == ({}, (), 0)
    by_size = sorted(series(tmp_path), key=lambda row: (-row.n_instances, row.paths))
    assert names(by_size[0]) == ["1.dcm", "2.dcm", "3.dcm"]
    assert by_size[0].patient == by_size[1].patient != by_size[2].patient
    assert by_size[2].flags == ("LOCALIZER", "CE", "T1")
    assert (by_size[0].kind, by_size[0].modality, by_size[0].rows) == ("dicom", "CT", 4)
    assert len(by_size[0].key) == len(by_size[0].frame) == 32
    assert all(path.is_file() for row in by_size for path in row.paths)


def test_what_tells_series_apart(tmp_path, ct):
    ct("1.dcm", number=1)
    ct("2.dcm", number=2, ImageOrientationPatient=[1, 0, 0, 0, 1, 5e-5])
    ct("3.dcm", number=3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    ct("4.dcm", number=4, PixelSpacing=[1, 2])
    ct("5.dcm", number=5, Rows=8)
    ct("6.dcm", number=6, FrameOfReferenceUID=uid("other"))
    ct("7.dcm", number=7, EchoTime=3)
    ct("8.dcm", number=8, patient="P2")
    run(tmp_path)
    found = series(tmp_path)
    assert sorted(map(names, found)) == [["1.dcm", "2.dcm"], *([f"{n}.dcm"] for n in range(3, 9))]
    assert len({row.key for row in found}) == 7


def test_files_without_series_are_told_apart_by_folders(tmp_path, ct):
    for place in ("a/1", "a/2", "b/1"):
        ct(
            place,
            number=int(place[-1]),
            SeriesInstanceUID=None,
            StudyInstanceUID=None,
            PatientID="",
        )
    found = run(tmp_path)
    assert sorted(map(names, series(tmp_path))) == [["1"], ["1", "2"]]
    assert found.warnings[0].startswith("3 DICOM files without a patient: the frame of reference")


def test_a_copy_of_an_instance_counts_once(tmp_path, ct):
    first = ct("a/1.dcm")
    (tmp_path / "archive" / "b").mkdir()
    (tmp_path / "archive" / "b" / "copy.dcm").write_bytes(first.read_bytes())
    run(tmp_path)
    (row,) = series(tmp_path)
    assert (row.n_instances, names(row)) == (1, ["1.dcm"])


def test_only_what_changed_is_looked_at_again(tmp_path, ct, monkeypatch):
    for number in (1, 2, 3):
        ct(f"{number}.dcm", number=number)
    run(tmp_path)
    (before,) = series(tmp_path)
    looked = []
    look_at = archive._look_at
    monkeypatch.setattr(archive, "_look_at", lambda *a: looked.append(a[1].path) or look_at(*a))
    again = run(tmp_path)
    assert (again.added, again.changed, again.vanished, looked) == (0, 0, 0, [])
    assert series(tmp_path) == [before]

    ct("4.dcm", number=4)
    os.utime(tmp_path / "archive" / "2.dcm", ns=(0, 12345))
    (tmp_path / "archive" / "3.dcm").unlink()
    found = run(tmp_path)
    assert (found.files, found.added, found.changed, found.vanished) == (3, 1, 1, 1)
    assert looked == [b"2.dcm", b"4.dcm"]
    (after,) = series(tmp_path)
    assert names(after) == ["1.dcm", "2.dcm", "4.dcm"]
    assert after.key == before.key
    assert after.stamp != before.stamp

    ct("3.dcm", number=3)
    assert run(tmp_path).added == 1
    (tmp_path / "archive" / "4.dcm").write_bytes(b"now something else")
    assert run(tmp_path).refused == {"unknown": 1}
    assert names(series(tmp_path)[0]) == ["1.dcm", "2.dcm", "3.dcm"]
    for path in (tmp_path / "archive").iterdir():
        path.unlink()
    assert run(tmp_path).files == 0
    assert series(tmp_path) == []


def test_several_processes_give_the_same_rows(tmp_path, ct, monkeypatch):
    monkeypatch.setattr(archive, "CHUNK", 2)
    for number in range(7):
        ct(f"{number}.dcm", number=number, series=str(number % 2))
    (tmp_path / "archive" / "empty").touch()
    told = []
    run(tmp_path, progress=lambda *facts: told.append(facts))
    alone = series(tmp_path)
    parts = Parts.open(tmp_path / "index")
    parts.forget()
    found = run(tmp_path, workers=2)
    assert series(tmp_path) == alone
    assert found.refused == {"empty": 1}
    assert told[-1] == ("headers", 8, 8)


def test_a_killed_run_goes_on(tmp_path, ct, monkeypatch):
    for number in range(6):
        ct(f"{number}.dcm", number=number)
    monkeypatch.setattr(archive, "CHUNK", 2)
    monkeypatch.setattr(archive, "PART", 2)
    look_at, looked = archive._look_at, []

    def die_at_the_fourth(*words):
        looked.append(words)
        if len(looked) == 4:
            raise SystemExit(143)
        return look_at(*words)

    monkeypatch.setattr(archive, "_look_at", die_at_the_fourth)
    with pytest.raises(SystemExit):
        run(tmp_path)
    with pytest.raises(InputError, match="was not finished"):
        series(tmp_path)
    found = run(tmp_path)
    assert (found.files, found.added) == (6, 4)  # two lay in a part already
    assert len(series(tmp_path)[0].paths) == 6


@pytest.mark.slow
def test_killed_at_random_times_it_ends_as_if_never_killed(tmp_path, ct):
    for number in range(1500):
        ct(f"{number % 50}/{number}.dcm", number=number, series=str(number % 50))
    run(tmp_path)
    whole = [(names(row), row.stamp) for row in series(tmp_path)]
    code = (
        "import sys; from pathlib import Path; from medssl.data import archive; "
        "archive.CHUNK, archive.PART = 20, 100; archive.index(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    out = tmp_path / "again"
    chance = random.Random(0)
    for _ in range(12):
        words = [sys.executable, "-c", code, tmp_path / "archive", out]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.1, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    archive.index(tmp_path / "archive", out)
    assert sorted((names(r), r.stamp) for r in archive.series(out)) == sorted(whole)


def test_whatever_lies_there_is_one_row(tmp_path, ct):
    good = ct("good.dcm").read_bytes()
    root = tmp_path / "archive"
    (root / "empty.dcm").touch()
    (root / "notes.txt").write_text("see above")
    (root / "cut.dcm").write_bytes(good[:250])
    (root / "bomb.nii").write_bytes(b"\x5c\x01\0\0" + bytes(10))
    (root / "deep.dcm").write_bytes(good[:400] + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" * 5000)
    (
        root
        / "odd name \n\udcff.dcm".encode(errors="surrogateescape").decode(
            "utf-8", "surrogateescape"
        )
    ).write_bytes(good)
    (root / "nowhere").symlink_to(root / "missing")
    (root / "loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / ".hidden").write_bytes(good)
    os.mkfifo(root / "pipe")
    found = run(tmp_path)
    assert found.refused == {"damaged": 3, "empty": 1, "unknown": 1, "unreadable": 3}
    assert found.files == 10
    assert found.modalities == {"CT": 2}
    assert run(tmp_path).added == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path, ct):
    ct("a.dcm").chmod(0)
    ct("b/b.dcm").parent.chmod(0)
    try:
        assert run(tmp_path).refused == {"unreadable": 2}
    finally:
        (tmp_path / "archive" / "b").chmod(0o700)


def test_a_failing_reader_costs_one_file(tmp_path, ct, monkeypatch):
    ct("1.dcm")
    ct("2.dcm", number=2)
    scan = archive.tags.scan

    def recurse(path):
        if path.endswith(b"1.dcm"):
            raise RecursionError
        return scan(path)

    monkeypatch.setattr(archive.tags, "scan", recurse)
    assert run(tmp_path).refused == {"damaged": 1}


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, ct, monkeypatch):
    ct("1.dcm")
    ct("2.dcm", number=2)
    with monkeypatch.context() as patch:
        scan = archive.tags.scan

        def refuse(path):
            if path.endswith(b"1.dcm"):
                raise PermissionError
            return scan(path)

        patch.setattr(archive.tags, "scan", refuse)
        assert run(tmp_path).refused == {"unreadable": 1}
    found = run(tmp_path)
    assert (found.changed, found.refused) == (1, {})
    assert run(tmp_path).changed == 0


def test_nifti_and_pictures_find_their_patients(tmp_path, nifti):
    root = tmp_path / "archive"
    volume = np.zeros((4, 5, 6), np.int16)
    for name in (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/pet/sub-01_pet.nii",
        "sub-02/a.nii",
        "x.nii",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        nifti(volume, f"archive/{name}")
    for name in ("case1/a.png", "case1/b.png", "case2/a.png", "c.png"):
        (root / name).parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (9, 7)).save(root / name)
    found = run(tmp_path)
    assert found.modalities == {"MR": 1, "PT": 1, "nifti": 2, "picture": 4}
    assert len(found.warnings) == 2
    assert "1 NIfTI file without a patient" in found.warnings[0]
    of = {str(row.paths[0].relative_to(root)): row for row in series(tmp_path)}
    assert of["sub-01/pet/sub-01_pet.nii"].patient == of["sub-01/anat/sub-01_T1w.nii.gz"].patient
    assert of["case1/a.png"].patient == of["case1/b.png"].patient
    assert len({row.patient for row in of.values()}) == 6
    assert of["sub-01/anat/sub-01_T1w.nii.gz"].flags == ("T1",)
    assert of["case1/a.png"].flags == ("COLOUR",)
    assert (of["x.nii"].columns, of["x.nii"].rows, of["x.nii"].n_frames) == (4, 5, 6)


def test_an_expression_finds_patients_in_paths(tmp_path, ct, nifti):
    ct("ward/4711_ct/1.dcm", patient="A")
    ct("ward/4711_late/1.dcm", patient="B", study="S2")
    ct("ward/other/1.dcm", patient="4711", study="S3")
    run(tmp_path)
    assert len({row.patient for row in series(tmp_path)}) == 3
    found = run(tmp_path, patient_regex=r"(\d{4})_")
    assert found.added == 3  # with another expression every row is made again
    assert found.patients == 1
    assert run(tmp_path, patient_regex=r"(\d{4})_").added == 0
    with pytest.raises(UsageError, match="no expression"):
        run(tmp_path, patient_regex="(")


@pytest.mark.parametrize("filler", ["", "ANONYMOUS", "Anonymized ", "000000", "xxx"])
def test_fillers_are_no_patients(tmp_path, ct, filler):
    for number in range(30):
        ct(f"{number}.dcm", patient=filler, study=f"S{number}")
    found = run(tmp_path)
    assert found.patients == 30
    assert "the study stands for it" in found.warnings[0]


def test_one_patient_with_most_studies_is_refused(tmp_path, ct):
    for number in range(30):
        ct(f"p{number}/1.dcm", patient="CASE", study=f"S{number}")
    with pytest.raises(InputError, match=r"holds 30 of 30 studies.*--patient-regex") as refusal:
        run(tmp_path)
    assert refusal.value.code == 3
    with pytest.raises(InputError, match="was not finished"):
        series(tmp_path)
    assert run(tmp_path, patient_regex=r"p(\d+)/").patients == 30


@pytest.mark.parametrize(("patients", "studies"), [(1, 20), (3, 30), (20, 1)])
def test_small_archives_are_not_refused(tmp_path, ct, patients, studies):
    for number in range(studies):
        for patient in range(patients):
            ct(f"{patient}/{number}.dcm", patient=f"P{patient}", study=f"S{patient}/{number}")
    assert run(tmp_path).patients == patients


def test_a_frame_of_reference_of_many_patients_is_told(tmp_path, ct):
    for number in range(4):
        frame = uid("everybody's")
        ct(f"{number}.dcm", patient=f"P{number}", study=f"S{number}", FrameOfReferenceUID=frame)
    assert "4 patients share one frame" in run(tmp_path).warnings[0]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are listed elsewhere")
def test_processes_end_with_the_one_that_started_them(tmp_path, ct):
    for number in range(60):
        ct(f"{number}.dcm", number=number)
    code = (
        "import os, sys, time; from pathlib import Path; from medssl.data import archive\n"
        "def told(stage, done, total):\n"
        "    if done:\n"
        "        children = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text()\n"
        "        print(children, flush=True); time.sleep(60)\n"
        "archive.CHUNK = 5\n"
        "archive.index(Path(sys.argv[1]), Path(sys.argv[2]), workers=2, progress=told)\n"
    )
    words = [sys.executable, "-c", code, tmp_path / "archive", tmp_path / "index"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        children = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    assert len(children) > 1
    for _ in range(100):
        left = [child for child in children if Path(f"/proc/{child}").exists()]
        if not left:
            break
        time.sleep(0.1)
    assert left == []
    assert run(tmp_path).files == 60


def test_killed_processes_cost_nothing(tmp_path, ct, monkeypatch):
    for number in range(20):
        ct(f"{number}.dcm", number=number)
    monkeypatch.setattr(archive, "CHUNK", 2)

    class Broken(archive.ProcessPoolExecutor):
        def submit(self, *words):
            if getattr(self, "used", 0) > 2:
                raise archive.BrokenProcessPool
            self.used = getattr(self, "used", 0) + 1
            return super().submit(*words)

    monkeypatch.setattr(archive, "ProcessPoolExecutor", Broken)
    assert run(tmp_path, workers=2).modalities == {"CT": 20}
    assert len(series(tmp_path)[0].paths) == 20


def test_what_is_no_image_is_told(tmp_path, ct):
    ct("DICOMDIR", SeriesInstanceUID=None, Rows=None, SOPClassUID="1.2.840.10008.1.3.10")
    ct("shot.dcm", SOPClassUID=SecondaryCaptureImageStorage, BurnedInAnnotation="YES")
    ct("many.dcm", series="B", NumberOfFrames=10, ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert run(tmp_path).refused == {"no-image": 1}
    flags = {row.paths[0].name: row.flags for row in series(tmp_path)}
    assert flags["shot.dcm"] == ("SECONDARY", "BURNED_IN")
    assert flags["many.dcm"] == ("DERIVED", "MULTIFRAME", "MPR")


def test_nothing_of_a_patient_is_stored_outside_private(tmp_path, ct, capfd):
    secret = iter(f"SECRET{i}X" for i in range(100))
    ct(
        f"{next(secret)}/{next(secret)}.dcm", patient=next(secret), PatientName=next(secret),
        PatientBirthDate="19770707", StudyDate="19880808", StudyDescription=next(secret),
        SeriesDescription=f"t2 {next(secret)}", Manufacturer=next(secret), Modality=next(secret),
        BodyPartExamined=next(secret), ConvolutionKernel=next(secret), ImageType=[next(secret)] * 3,
        InstitutionName=next(secret), ContrastBolusAgent=next(secret), PatientSex=next(secret)[:2],
        PhotometricInterpretation=next(secret)[:16], LossyImageCompression=next(secret)[:16],
        SOPClassUID=UID + "777", ProtocolName=next(secret), AccessionNumber=next(secret)[:16],
    )  # fmt: skip
    ct("SECRETcut.dcm").write_bytes(b"\0" * 128 + b"DICMSECRET" + bytes(300))
    (tmp_path / "archive" / "SECRET.png").write_bytes(b"\x89PNG\r\n\x1a\nSECRET")
    told = []
    run(tmp_path, progress=lambda *facts: told.append(facts))
    with pytest.raises(InputError) as refusal:
        archive.index(tmp_path, tmp_path / "index")
    out = capfd.readouterr()
    index = tmp_path / "index"
    public = [p for p in index.rglob("*") if p.is_file() and "private" not in p.parts]
    texts = [p.read_bytes() for p in public] + [p.name.encode() for p in public]
    texts += [str(table.read_parquet(p)).encode() for p in public if p.suffix == ".parquet"]
    texts += [str(told).encode(), str(refusal.value).encode(), str(archive.show(index)).encode()]
    texts += [out.out.encode(), out.err.encode()]
    words = (b"SECRET", UID.encode(), b"19770707", b"19880808", str(tmp_path).encode(), b".dcm")
    assert [w for w in words for text in texts if w in text] == []
    private = [index / "private", *(index / "private").rglob("*")]
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o700, 0o600}
    (row,) = series(tmp_path)
    assert row.flags == ("CE", "T2")


def test_keys_need_the_salt(tmp_path, ct):
    ct("a.dcm")
    run(tmp_path)
    archive.index(tmp_path / "archive", tmp_path / "other")
    (here,), (there,) = series(tmp_path), archive.series(tmp_path / "other")
    assert {here.key, here.patient, here.study, here.frame}.isdisjoint(
        {there.key, there.patient, there.study, there.frame}
    )
    assert archive.salt(tmp_path / "index") != archive.salt(tmp_path / "other")


def test_wrong_folders_end_in_one_line(tmp_path, ct):
    ct("a.dcm")
    with pytest.raises(InputError, match="cannot be listed"):
        archive.index(tmp_path / "missing", tmp_path / "index")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="is no index"):
        archive.index(tmp_path / "archive", tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is no index"):
        archive.series(tmp_path / "full")
    run(tmp_path)
    with Parts.open(tmp_path / "index").locked(), pytest.raises(OutputError, match="another run"):
        run(tmp_path)
    (tmp_path / "index" / "rows" / "000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="damaged"):
        series(tmp_path)
    (tmp_path / "index" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="manifest is damaged"):
        run(tmp_path)


def test_the_index_may_lie_inside_the_archive(tmp_path, ct):
    ct("a.dcm")
    inside = tmp_path / "archive" / "index"
    for _ in range(2):
        assert archive.index(tmp_path / "archive", inside).files == 1


def test_groups_are_connected():
    members = [
        ("a", "p1", "f1"), ("b", "p1", ""), ("c", "p2", "f1"), ("d", "p3", "f3"), ("e", "", ""),
        ("f", "p4", ""),
    ]  # fmt: skip
    found = archive.groups(members, [("d", "f"), ("a", "unknown")])
    assert found == {"a": "p1", "b": "p1", "c": "p1", "d": "p3", "e": "e", "f": "p3"}
    shuffled = random.Random(0).sample(members, len(members))
    assert archive.groups(shuffled, [("f", "d")]) == found


def test_the_split_follows_its_equation_and_nothing_else():
    members = [(f"k{i}", f"p{i % 400}", "") for i in range(1200)]
    shares = (0.8, 0.1, 0.1)
    chosen, torn = archive.split(members, salt=b"salt", shares=shares)
    assert torn == []
    counts = {s: sum(v == s for v in chosen.values()) / 1200 for s in ("train", "val", "test")}
    assert counts == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.06)
    later = [("new", "p-new", ""), *reversed(members[:700])]
    again, _ = archive.split(later, salt=b"salt", shares=shares)
    assert all(again[key] == chosen[key] for key, _, _ in members[:700])
    other, _ = archive.split(members, salt=b"pepper", shares=shares)
    assert other != chosen


def test_a_torn_group_goes_to_training_and_is_listed():
    members = [(f"k{i}", f"p{i}", "") for i in range(200)]
    chosen, _ = archive.split(members, salt=b"salt")
    test = next(k for k, s in chosen.items() if s == "test")
    train = next(k for k, s in chosen.items() if s == "train")
    linked, torn = archive.split(members, [(test, train)], salt=b"salt")
    assert linked == chosen | {test: "train"}
    assert torn == [min(test.replace("k", "p"), train.replace("k", "p"))]


def test_words_are_stored_only_when_known():
    assert [rows.is_nobody(name) for name in ("", "De-Identified", "1111", "11", "A1", "0815")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert rows.flag_words(rows._word_flags("AX T2_FLAIR fs c+")) == ("CE", "T2", "FLAIR")
    assert rows.flag_words(rows._word_flags("DOE^JOHN ctpd1")) == ()
    assert rows._maker("GE MEDICAL SYSTEMS") == "GE"
    assert rows._maker("Dr. Secret's Own") == "OTHER"
    assert rows._standard("1.2.840.10008.1.2.1") == "1.2.840.10008.1.2.1"
    assert rows._standard("1.2.3") == "private"


def test_indexing_loads_no_torch():
    code = (
        "import sys; import medssl.data.archive; "
        "assert not {'torch', 'pyarrow', 'duckdb', 'pydicom'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.data
def test_the_real_archive(tmp_path, data_folder):
    found = archive.index(data_folder, tmp_path / "index")
    assert found.fallback <= 0.1
    assert found.modalities["CT"] >= 20
    by_folder = {row.paths[0].parent.name: row for row in archive.series(tmp_path / "index")}
    assert by_folder["series_3mm_dicom"].n_instances == 20
    assert by_folder["t2w"].flags == ("T2",)
