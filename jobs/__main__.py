"""The program `ray-llava`, also as `python -m jobs` where its script is not on the path."""

import sys

from jobs.own_packages import ForeignPackageError, check_own_packages, put_own_packages_first


def main() -> None:
    """Make sure that the code is this project's own, then run the command line."""
    put_own_packages_first()
    try:
        check_own_packages()
    except ForeignPackageError as error:
        sys.exit(_refuse(error))
    from jobs.cli import main as run_command_line  # only now: it imports all packages

    run_command_line()


def _refuse(error: ForeignPackageError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
