"""Every outcome as one line on stderr and one exit code."""

import json
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import typer

from medssl.core.errors import MedsslError, printable

INTERNAL = 70
TERMINATED = 143
INTERRUPTED = 130


def run() -> NoReturn:
    """Run the verbs; `--json` and `--debug` anywhere in the call decide how errors look."""
    from .app import command

    words = sys.argv[1:]
    as_json, debug = "--json" in words, "--debug" in words
    words = [w for w in words if w != "--debug"]
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = command().main(words, prog_name="medssl", standalone_mode=False)
        _leave(code if isinstance(code, int) else 0)
    except MedsslError as error:
        _report(error.as_dict() | {"line": str(error)}, as_json, debug)
        _leave(error.code)
    except typer.Exit as exit_:
        _leave(exit_.exit_code)
    except typer.TyperException as error:
        fact = printable(error.format_message(), 180).rstrip(".")
        _report(_plain(2, "usage", fact, "see medssl --help"), as_json, debug)
        _leave(2)
    except (KeyboardInterrupt, typer.Abort):
        _report(
            _plain(INTERRUPTED, "interrupted", "interrupted; nothing was written"), as_json, debug
        )
        _leave(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        _leave(0)
    except MemoryError:
        fact = "the memory is used up; close other programs or use a machine with more"
        _report(_plain(5, "memory", fact), as_json, debug)
        _leave(5)
    except Exception as error:  # noqa: BLE001 (the last resort of the program)
        where = traceback.extract_tb(error.__traceback__)[-1]
        fact = f"internal: {type(error).__name__} in {where.name}, line {where.lineno}"
        _report(_plain(INTERNAL, "internal", fact, "please report it with --debug"), as_json, debug)
        _leave(INTERNAL)


def _plain(code: int, kind: str, fact: str, remedy: str = "") -> dict[str, object]:
    line = f"{fact}; {remedy}" if remedy else fact
    return {"code": code, "kind": kind, "file": None, "fact": fact, "remedy": remedy, "line": line}


def _report(facts: dict[str, object], as_json: bool, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    line = facts.pop("line")
    if as_json:
        typer.echo(json.dumps({"error": facts}))
    typer.echo(f"error: {line}", err=True)


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds the stack, so that temporary files are removed on the way out."""
    del number, frame
    raise SystemExit(TERMINATED)


def _leave(code: int) -> NoReturn:
    raise SystemExit(code)
