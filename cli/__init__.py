"""The command line: words in, one call of `medssl.api`, one line out."""


def main() -> None:
    """Run the command line and leave with the exit code of its outcome."""
    from ._errors import run

    run()
