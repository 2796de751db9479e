"""The single door for every byte written: temporary name, fsync, rename, fsync of the folder."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medssl.core.errors import OutputError

PARTIAL = ".partial-"
"""Part of every temporary name; `doctor` looks for leftovers of killed runs."""


def check_target(target: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Refuse an output that exists, is the input, or has no folder, before any work is done.

    Raises:
        OutputError: With the remedy.
    """
    if source is not None and source.exists():
        here, there = target.resolve(), source.resolve()
        if here == there:
            raise OutputError(
                "the output is the input itself", "choose another name with -o", file=target
            )
        if source.is_dir() and there in here.parents:
            raise OutputError(
                "the output lies inside the input folder", "choose another place", file=target
            )
    if not target.parent.is_dir():
        raise OutputError(
            f"the folder {target.parent.name!r} does not exist", "create it first", file=target
        )
    if _taken(target) and not overwrite:
        raise OutputError("exists already", "use --overwrite or another name with -o", file=target)
    if not os.access(target.parent, os.W_OK):
        raise OutputError("its folder is not writable", "choose another place", file=target)


@contextlib.contextmanager
def file(target: Path, *, overwrite: bool = False, private: bool = False) -> Iterator[BinaryIO]:
    """A binary file that appears under its name complete, or not at all.

    Args:
        target: The file.
        overwrite: Replace one that is there.
        private: Nobody but its owner may read it.

    Raises:
        OutputError: The place is taken, not writable, or full.
    """
    check_target(target, overwrite=overwrite)
    partial = _partial(target)
    with _refusals(target):
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            if not private:
                partial.chmod(0o666 & ~_umask())
            partial.replace(target)
            _sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it appears under its name complete, or not at all.

    Raises:
        OutputError: The place is taken, not writable, or full.
    """
    check_target(target, overwrite=overwrite)
    partial = _partial(target)
    aside = _partial(target)
    with _refusals(target):
        try:
            partial.mkdir(mode=0o777)
            yield partial
            for path in sorted(partial.rglob("*")):
                if path.is_file():
                    _sync_file(path)
            _sync_folder(partial)
            if target.exists():
                target.rename(aside)
            try:
                partial.rename(target)
            except OSError:
                if aside.exists():
                    aside.rename(target)
                raise
            _sync_folder(target.parent)
        finally:
            for leftover in (partial, aside):
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)


def leftovers(place: Path) -> list[Path]:
    """Temporary names of killed runs in a folder."""
    return sorted(p for p in place.glob(f".*{PARTIAL}*"))


def remove(target: Path) -> None:
    """Remove a file that describes an output about to be replaced."""
    with _refusals(target):
        target.unlink(missing_ok=True)


def make_folder(target: Path, *, private: bool = False) -> None:
    """A folder that fills while a run goes on; one that exists stays as it is.

    Args:
        target: The folder.
        private: Nobody but its owner may enter it.
    """
    with _refusals(target):
        target.mkdir(exist_ok=True, mode=0o700 if private else 0o777)
        _sync_folder(target.parent)


def remove_if_empty(target: Path) -> None:
    """Remove a folder that holds nothing."""
    with contextlib.suppress(OSError):
        target.rmdir()


def remove_folder(target: Path) -> None:
    """Remove a folder with all that it holds; what cannot be removed stays."""
    shutil.rmtree(target, ignore_errors=True)


def _taken(target: Path) -> bool:
    """Whether something would be lost; an empty folder is nothing."""
    if target.is_dir():
        return any(target.iterdir())
    return target.exists() or target.is_symlink()


def _partial(target: Path) -> Path:
    stem = target.name.encode()[:200].decode(errors="ignore")
    return target.with_name(f".{stem}{PARTIAL}{secrets.token_hex(4)}")


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _refusals(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(
            f"cannot be written ({reason})", "check free space and permissions", file=target
        ) from error
