"""One row for one file of an archive: what it shows, under keys that name nobody.

Keys are HMACs with the salt of the index: equal keys mean equal patients, studies or series, and
nothing leads back. Texts are stored only when they are one of a fixed list of words; names, dates,
UIDs and free text never are. The path of a file may name its patient, so it lies in a table of its
own (`PRIVATE`), with its size and time.
"""

import hmac
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from medssl.io.heads import Head
from medssl.io.tags import Header

PUBLIC = {
    "id": "int64",
    "kind": "str",
    "code": "str",
    "by": "str",
    "instance": "bytes8",
    "series": "bytes16",
    "study": "bytes16",
    "patient": "bytes16",
    "patient_by": "str",
    "frame": "bytes16",
    "sop_class": "str",
    "syntax": "str",
    "modality": "str",
    "maker": "str",
    "rows": "int64",
    "columns": "int64",
    "frames": "int64",
    "bits": "int64",
    "photometric": "str",
    "number": "int64",
    "temporal": "int64",
    "position": "[float32]",
    "orientation": "[float32]",
    "spacing": "[float32]",
    "thickness": "float32",
    "slope": "float32",
    "intercept": "float32",
    "kernel": "str",
    "kvp": "float32",
    "echo_time": "float32",
    "b_value": "float32",
    "body_part": "str",
    "flags": "int64",
}
"""Columns of the rows. `code` says why a file is of no use, `""` when it is; `by` who read it;
`patient_by` what stands for the patient: `id`, `regex`, `bids`, `folder`, `study`, `frame` or
`file`; `flags` is the sum of 2^i over the words of `FLAGS`."""
PRIVATE = {"id": "int64", "path": "bytes", "size": "int64", "mtime_ns": "int64"}
"""Columns of the table of paths, relative to the archive."""
RUNNING = ("id", "path")

_FLAGS = """
    LOCALIZER DERIVED SECONDARY BURNED_IN LOSSY MULTIFRAME COLOUR MPR MIP CE T1 T2 PD FLAIR STIR
    DWI DTI ADC SWI TOF BOLD PERFUSION DIXON
    """
FLAGS = tuple(_FLAGS.split())
"""Words of a row. SECONDARY is a secondary capture (a picture of a screen), DERIVED any image
computed from others; words of sequences come from the image type and the series description."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BIT = {word: 1 << i for i, word in enumerate(FLAGS)}

MODALITIES = _words(
    """
    AR BMD CR CT CTPROTOCOL DOC DX ECG EPS ES FID GM HD IO IVOCT IVUS KO LS MG MR M3D NM OAM OCT
    OP OPT OPTENF OPV OT PLAN PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT
    RWV SEG SM SMR SR STAIN TEXTUREMAP TG US VA XA XC
    """
)
PHOTOMETRIC = _words("MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_ICT YBR_RCT")
PHOTOMETRIC |= {"PALETTE COLOR"}
MAKERS = _words(
    """
    SIEMENS PHILIPS GE CANON TOSHIBA HITACHI FUJI FUJIFILM UIH AGFA CARESTREAM KODAK KONICA
    HOLOGIC SAMSUNG NEUSOFT MINDRAY ESAOTE SHIMADZU BRUKER VARIAN ELEKTA ACCURAY HYPERFINE
    MEDISO
    """
)
BODY_PARTS = _words(
    """
    ABDOMEN ABDOMENPELVIS ANKLE AORTA ARM BLADDER BRAIN BREAST CALF CAROTID CHEST CHESTABDOMEN
    CHESTABDPELVIS CLAVICLE CSPINE ELBOW EXTREMITY EYE FEMUR FINGER FOOT FOREARM HAND HEAD
    HEADNECK HEART HIP HUMERUS JAW KIDNEY KNEE LEG LIVER LSPINE LUNG NECK ORBIT PANCREAS PELVIS
    PROSTATE RIB SHOULDER SKULL SPINE SSPINE STERNUM THIGH THORAX TLSPINE TOE TSPINE UTERUS
    WHOLEBODY WRIST
    """
)
KERNELS = re.compile(
    r"[A-Z][a-z]?\d{2,3}[a-z]?(\\[1-5])?"  # Siemens: B30f, Br40d\3
    r"|FC\d{2}[A-Z]?"  # Canon, Toshiba
    r"|[A-L]|Y[A-D]|U[A-D]|I[A-D]|LA|LB|EB|EC"  # Philips
    r"|STANDARD|SOFT|LUNG|BONE|BONEPLUS|DETAIL|EDGE|CHST|ULTRA"  # GE
)

NOBODY = _words(
    """
    anon anonym anonymous anonymised anonymized anonymisiert deidentified removed unknown none
    null na noid nopatientid notavailable noname patient patientid test phantom default id
    undefined unspecified
    """
)
"""What is written where a patient's ID should be, in small letters and digits only."""
_SPACE = {by: by for by in ("study", "frame", "folder", "file")}
_SPACE |= dict.fromkeys(("id", "regex", "bids"), "patient")
"""In which names are equal: a patient is the same, whoever names it."""
_BIDS = re.compile(r"(?:^|[/_])sub-([A-Za-z0-9]+)")
_STANDARD_UID = re.compile(r"1\.2\.840\.10008[.\d]{1,50}")
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LOSSY_SYNTAX = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91))
_MR_SUFFIXES = ("t1w", "t2w", "flair", "bold", "dwi", "sbref", "asl", "t2star", "epi", "pdw")
_SUFFIX_MODALITY = {"ct": "CT", "pet": "PT"} | dict.fromkeys(_MR_SUFFIXES, "MR")
"""Last words of BIDS file names."""
_WORDS = {
    **dict.fromkeys(["localizer", "localiser", "loc", "scout", "scouts", "topogram"], "LOCALIZER"),
    **dict.fromkeys(["surview", "survey", "scanogram", "scano"], "LOCALIZER"),
    **dict.fromkeys(["mpr", "reformatted", "reformat", "mpvr"], "MPR"),
    **dict.fromkeys(["mip", "mips", "minip"], "MIP"),
    **dict.fromkeys(["ce", "gd", "gad", "gado", "km", "contrast", "postcontrast"], "CE"),
    **dict.fromkeys(["mprage", "mp2rage", "bravo"], "T1"),
    **dict.fromkeys(["stir", "tirm"], "STIR"),
    **dict.fromkeys(["dwi", "diff", "diffusion", "trace", "tracew"], "DWI"),
    **dict.fromkeys(["perf", "perfusion", "dsc", "dce", "asl"], "PERFUSION"),
    **dict.fromkeys(["bold", "fmri"], "BOLD"),
    **{word.lower(): word for word in ("PD", "FLAIR", "DTI", "ADC", "SWI", "TOF", "DIXON")},
}
_MOST_KNOWN = 100_000


class Keys:
    """Keyed hashes of names."""

    def __init__(self, salt: bytes) -> None:
        self.salt = salt
        self._known: dict[tuple[str, str], bytes] = {}

    def __call__(self, what: str, name: str) -> bytes:
        """The 128-bit key of one of many files' names, as of a series."""
        asked = (what, name)
        found = self._known.get(asked)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[asked] = self.once(what, name)[:16]
        return found

    def once(self, what: str, name: str) -> bytes:
        """The key of what is asked for once, as of an instance."""
        message = f"{what}\x1f{name}".encode("utf-8", "surrogateescape")
        return hmac.digest(self.salt, message, "sha256")


def dicom_row(
    header: Header, path: str, keys: Keys, pattern: re.Pattern[str] | None = None
) -> tuple[Any, ...]:
    """The row of a DICOM file, without its `id`.

    Args:
        header: Of the file.
        path: Relative to the archive, with `/`.
        keys: With the salt of the index.
        pattern: Finds the patient in the path: its first group, or all of it.
    """
    h = header
    by, name = _patient_of_dicom(h, path, pattern)
    frames = max(h.frames or 1, 1)
    spacing = [f"{step:.5g}" for step in h.spacing]
    series = (
        name,
        h.study,
        h.series or path.rpartition("/")[0],
        h.sop_class,
        h.frame,
        h.rows,
        h.columns,
        *spacing,
    )
    return (
        "dicom",
        "" if h.series or h.rows else "no-image",
        h.by,
        keys.once("instance", h.instance or path)[:8],
        keys("series", "\x1f".join(map(str, (*series, h.echo_time, h.b_value)))),
        keys("study", h.study) if h.study else None,
        keys(_SPACE[by], name),
        by,
        keys("frame", h.frame) if h.frame else None,
        _standard(h.sop_class),
        _standard(h.syntax),
        h.modality if h.modality in MODALITIES else "",
        _maker(h.maker),
        h.rows,
        h.columns,
        frames,
        h.bits,
        h.photometric if h.photometric in PHOTOMETRIC else "",
        h.number,
        h.temporal,
        h.position,
        h.orientation,
        h.spacing,
        h.thickness,
        h.slope,
        h.intercept,
        h.kernel if KERNELS.fullmatch(h.kernel) else "",
        h.kvp,
        h.echo_time,
        h.b_value,
        _body_part(h.body_part),
        _image_flags(h.image_type, h.sop_class)
        | _word_flags(h.description)
        | (_BIT["CE"] if h.contrast else 0)
        | (_BIT["BURNED_IN"] if h.burned_in == "YES" else 0)
        | (_BIT["LOSSY"] if h.lossy == "01" or h.syntax in _LOSSY_SYNTAX else 0)
        | (_BIT["MULTIFRAME"] if frames > 1 else 0)
        | (_BIT["COLOUR"] if h.samples == 3 else 0),
    )


def head_row(
    head: Head, path: str, keys: Keys, pattern: re.Pattern[str] | None = None
) -> tuple[Any, ...]:
    """The row of a NIfTI file or a picture, without its `id`; a series of its own.

    Args:
        head: Of the file.
        path: Relative to the archive, with `/`.
        keys: With the salt of the index.
        pattern: Finds the patient in the path: its first group, or all of it.
    """
    by, name = _patient_of_path(head.kind, path, pattern)
    words = PurePosixPath(path).name.partition(".")[0] if head.kind == "nifti" else ""
    columns, rows, *others = (*head.shape, 1)
    frames = 1
    for n in others:
        frames *= n
    found = {
        "kind": head.kind,
        "code": "",
        "by": "head",
        "instance": keys.once("instance", path)[:8],
        "series": keys.once("series", path)[:16],
        "patient": keys(_SPACE[by], name),
        "patient_by": by,
        "modality": _SUFFIX_MODALITY.get(words.rpartition("_")[2].lower(), ""),
        "rows": rows,
        "columns": columns,
        "frames": min(frames, 2**62),
        "bits": head.bits,
        "spacing": head.spacing,
        "thickness": head.spacing[2] if len(head.spacing) > 2 else None,
        "flags": _word_flags(words) | (_BIT["COLOUR"] if head.samples > 2 else 0),
    }
    return _row(found)


def refused_row(code: str, path: str, keys: Keys, kind: str = "") -> tuple[Any, ...]:
    """The row of a file that is of no use, without its `id`."""
    instance = keys.once("instance", path)[:8]
    return _row({"kind": kind, "code": code, "by": "", "instance": instance})


def flag_words(flags: int) -> tuple[str, ...]:
    """The words of a sum of flags."""
    return tuple(word for word, bit in _BIT.items() if flags & bit)


def is_nobody(patient_id: str) -> bool:
    """Whether an ID stands for no patient: a filler word, or one character again and again."""
    plain = "".join(filter(str.isalnum, patient_id.lower()))
    return plain in NOBODY or (set(plain) <= {"0", "x"}) or (len(plain) > 3 and len(set(plain)) < 2)


_DEFAULTS: dict[str, Any] = {
    name: "" if kind == "str" else () if kind[0] == "[" else None for name, kind in PUBLIC.items()
} | {"flags": 0}


def _row(values: dict[str, Any]) -> tuple[Any, ...]:
    """A row of what is known, in the order of `PUBLIC` without `id`."""
    return tuple((_DEFAULTS | values)[name] for name in PUBLIC if name != "id")


def _patient_of_dicom(
    header: Header, path: str, pattern: re.Pattern[str] | None
) -> tuple[str, str]:
    """What stands for the patient, and its name: study and frame where the ID names nobody."""
    if pattern is not None and (found := pattern.search(path)):
        return "regex", _group(found)
    if not _known_nobody(header.patient_id):
        return "id", header.patient_id.upper()
    if header.study:
        return "study", header.study
    return ("frame", header.frame) if header.frame else ("file", path)


def _patient_of_path(kind: str, path: str, pattern: re.Pattern[str] | None) -> tuple[str, str]:
    """The same of a file that names no patient: BIDS names, the first folder of pictures."""
    if pattern is not None and (found := pattern.search(path)):
        return "regex", _group(found)
    if kind == "nifti" and (found := _BIDS.search(path)):
        return "bids", found[1]
    folder, slash, _ = path.partition("/")
    return ("folder", folder) if kind == "picture" and slash else ("file", path)


def _group(found: re.Match[str]) -> str:
    return (found[1] if found.re.groups else found[0]) or found[0]


def _standard(uid: str) -> str:
    """A UID of the standard as it is; others could lead back to a hospital."""
    return uid if _STANDARD_UID.fullmatch(uid) else "private" if uid else ""


@lru_cache(4096)
def _known_nobody(patient_id: str) -> bool:
    return is_nobody(patient_id)


@lru_cache(4096)
def _maker(text: str) -> str:
    """The maker in one known word."""
    words = set(re.findall(r"[A-Z]+", text.upper()))
    known = min(words & MAKERS, default="")
    return known or ("OTHER" if text else "")


@lru_cache(4096)
def _body_part(text: str) -> str:
    plain = "".join(filter(str.isalnum, text.upper()))
    return plain if plain in BODY_PARTS else ""


@lru_cache(4096)
def _image_flags(image_type: Sequence[str], sop_class: str) -> int:
    """What the image type and the kind of object say."""
    words = {word.upper() for word in image_type}
    flags = _BIT["DERIVED"] if "DERIVED" in words else 0
    flags |= _BIT["SECONDARY"] if sop_class.startswith(_CAPTURE) else 0
    flags |= _BIT["MIP"] if "PROJECTION IMAGE" in words else 0
    for word in words & {"LOCALIZER", "MPR", "MIP", "ADC", "SWI"}:
        flags |= _BIT[word]
    return flags


@lru_cache(4096)
def _word_flags(text: str) -> int:
    """What a series description or a file name says, of a fixed list of words."""
    flags = 0
    if re.search(r"(?:^|[\s_])(?:\+\s?c|c\+)(?:$|[\s_])", text.lower()):
        flags |= _BIT["CE"]
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        known = _WORDS.get(word) or ("T1" if word[:2] == "t1" else "T2" if word[:2] == "t2" else "")
        flags |= _BIT.get(known, 0)
    return flags
