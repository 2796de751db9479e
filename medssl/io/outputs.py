"""The files of one run and their names, checked before any work is done."""

from dataclasses import dataclass
from pathlib import Path

from medssl.core.errors import OutputError, UsageError
from medssl.core.image import Image
from medssl.io import atomic, nifti, picture
from medssl.io.write import NIFTI_SUFFIXES, beside, kind_of, output_name


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where everything goes; None is not asked for."""

    image: Path
    sidecar: Path
    preview: Path | None
    noise_map: Path | None
    residual: Path | None
    sigma_maps: Path | None = None
    sigma_maps_picture: Path | None = None

    @classmethod
    def named(
        cls,
        source: Path,
        out: Path | None,
        image: Image,
        *,
        to: str,
        preview: bool,
        noise_map: bool,
        residual: bool,
        sigma_maps: bool = False,
    ) -> "Outputs":
        """Names of all files of a run.

        Args:
            source: The input.
            out: What the user asked for: a file, the folder of a DICOM series, a folder that
                exists and takes the default name, or None for beside the input.
            image: What was read; its origin decides the default kind.
            to: The kind that was asked for.
            preview: Draw a picture.
            noise_map: Write the noise map.
            residual: Write the residual.
            sigma_maps: Write the maps of the method, and draw them with the picture.

        Raises:
            UsageError: The name's suffix is not known.
        """
        default = output_name(source, image, to)
        target = default if out is None else out
        if out is not None and out.is_dir() and default.suffix:
            target = out / default.name
        kind = kind_of(target, image, to)
        extra = ".tif" if kind == "picture" and target.suffix != ".npy" else target.suffix
        extra = ".nii.gz" if kind != "picture" else extra
        return cls(
            image=target,
            sidecar=beside(target, ".json"),
            preview=beside(target, ".preview.png") if preview else None,
            noise_map=beside(target, f"_noise{extra}") if noise_map else None,
            residual=beside(target, f"_residual{extra}") if residual else None,
            sigma_maps=beside(target, "_sigma_maps.nii.gz") if sigma_maps else None,
            sigma_maps_picture=(
                beside(target, "_sigma_maps.png") if sigma_maps and preview else None
            ),
        )

    @classmethod
    def of_raw(cls, source: Path, out: Path | None, to: str, *, preview: bool) -> "Outputs":
        """Names of all files of a reconstruction; raw data have no kind of their own.

        Args:
            source: The raw data.
            out: What the user asked for, as for `named`.
            to: `nii` or `dicom`.
            preview: Draw a picture.

        Raises:
            UsageError: The name's suffix is not known.
        """
        stem = source.name.removesuffix(source.suffix)
        default = source.with_name(f"{stem}_recon" + ("" if to == "dicom" else ".nii.gz"))
        target = default if out is None else out
        if out is not None and out.is_dir() and default.suffix:
            target = out / default.name
        known = (*NIFTI_SUFFIXES, *picture.SUFFIXES)
        if to == "dicom" and target.name.lower().endswith(known):
            raise UsageError("a DICOM series is a folder", "name a folder with -o", file=target)
        if to != "dicom" and not target.name.lower().endswith(known):
            raise UsageError(
                "the output name has no suffix that is known here",
                "end it in .nii.gz, .nii, .npy or .png, or add --to dicom",
                file=target,
            )
        return cls(
            image=target,
            sidecar=beside(target, ".json"),
            preview=beside(target, ".preview.png") if preview else None,
            noise_map=None,
            residual=None,
        )

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file, the image first and the sidecar last."""
        maps = (self.sigma_maps, self.sigma_maps_picture)
        between = [self.residual, self.noise_map, *maps, self.preview]
        made = [*nifti.files_of(self.image), *(p for p in between if p is not None)]
        return (*made, self.sidecar)

    def check(self, source: Path, *, overwrite: bool) -> None:
        """Refuse outputs that exist, are the input, or lie in it.

        Raises:
            OutputError: With the remedy.
        """
        for path in self.all:
            atomic.check_target(path, overwrite=overwrite, source=source)
            if path.is_dir() and path != self.image:
                raise OutputError("is a folder", "choose another name with -o", file=path)
        suffixed = self.image.suffix.lower() in picture.SUFFIXES or ".nii" in self.image.name
        if self.image.is_dir() and suffixed:
            raise OutputError("is a folder", "choose another name with -o", file=self.image)
