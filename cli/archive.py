"""`medssl archive`: from a folder of scans to an index, and from there to a store."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ._options import Json, Quiet, Threads
from ._progress import progress
from ._verbs import Verbs

app = typer.Typer(
    cls=Verbs,
    help="Index an archive of scans and prepare it for training.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="DICOM, NIfTI, PNG, JPEG, ...")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="INDEX", help="Folder to write.")
    ],
    patient_regex: Annotated[
        str | None,
        typer.Option(help="Finds the patient in a path below DIR: its first group, or all of it."),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List what an archive holds, without names; run again, it looks at what is new."""
    from medssl import api

    with progress(quiet or as_json) as show_progress:
        found = api.archive_index(
            folder, output, patient_regex=patient_regex, threads=threads, progress=show_progress
        )
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    files = f"{found.files} files: {found.added} new, {found.changed} changed, "
    typer.echo(files + f"{found.vanished} vanished; {_sizes(asdict(found))}")
    typer.echo("\n".join(_index_lines(asdict(found))))


@app.command()
def prepare(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder that index wrote.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="STORE", help="Folder to write.")
    ],
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="tcp://HOST:PORT", help="Dask scheduler that hands out the work."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Local processes; default: all cores.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack the series of an index for training; run again, it does what is new or was cut off."""
    from medssl import api

    with progress(quiet or as_json) as show_progress:
        made = api.archive_prepare(
            index, output, scheduler=scheduler, jobs=jobs, progress=show_progress
        )
    if as_json:
        facts = {name: value for name, value in asdict(made).items() if name != "path"}
        typer.echo(json.dumps(facts, indent=2))
        return
    typer.echo(made.line)
    if made.skipped:
        typer.echo(f"see {output.name}/skipped.csv; lines may be removed or added")


@app.command()
def show(
    place: Annotated[
        Path, typer.Argument(metavar="INDEX|STORE", help="Folder that index or prepare wrote.")
    ],
    as_json: Json = False,
) -> None:
    """Show what an index or a store holds: modalities, splits, what is of no use and why."""
    from medssl import api

    facts = api.archive_show(place)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    if "n_volumes" in facts:
        typer.echo("\n".join(_store_lines(facts)))
        return
    typer.echo(f"{facts['files']} files; {_sizes(facts)}")
    counted = {
        name: f"{kind['files']} files in {kind['series']} series"
        for name, kind in facts["modalities"].items()
    }
    typer.echo("\n".join(_index_lines(facts | {"modalities": counted, "warnings": ()})))
    for name, split in facts["splits"].items():
        typer.echo(f"{name:<12} {split['series']} series in {split['groups']} groups")
    if facts["flags"]:
        typer.echo("flags        " + ", ".join(f"{n} {word}" for word, n in facts["flags"].items()))


def _sizes(facts: dict[str, Any]) -> str:
    return f"{facts['series']} series, {facts['studies']} studies, {facts['patients']} patients"


def _store_lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{facts['n_volumes']} volumes of {facts.get('n_series', 0)} series"]
    for name in ("modalities", "splits", "skipped"):
        words = (f"{n} {word or 'unknown'}" for word, n in facts.get(name, {}).items())
        lines.append(f"{name:<12} {', '.join(words) or 'none'}")
    lines.append(f"links        {facts.get('n_links', 0)} pairs of volumes show the same anatomy")
    if facts.get("torn"):
        n = len(facts["torn"])
        lines.append(f"moved        {n} groups of several splits, to training")
    return lines


def _index_lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"{name:<12} {n}" for name, n in facts["modalities"].items()]
    lines.append(f"fallback     {facts['fallback']:.1%} of DICOM files were left to pydicom")
    if facts["refused"]:
        refused = ", ".join(f"{n} {code}" for code, n in facts["refused"].items())
        lines.append(f"of no use    {refused}")
    return lines + [f"warning      {line}" for line in facts["warnings"]]
