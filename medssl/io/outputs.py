"""The files of one run and their names, checked before any work is done."""

from dataclasses import dataclass
from pathlib import Path

from medssl.core.errors import OutputError
from medssl.core.image import Image
from medssl.io import atomic, nifti, picture
from medssl.io.write import beside, kind_of, output_name


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where everything goes; None is not asked for."""

    image: Path
    sidecar: Path
    preview: Path | None
    noise_map: Path | None
    residual: Path | None

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
        )

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file, the image first and the sidecar last."""
        between = [self.residual, self.noise_map, self.preview]
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
