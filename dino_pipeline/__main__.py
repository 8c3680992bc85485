"""``python -m dino_pipeline`` is the ``dino`` command."""

import sys

from dino_pipeline.stopping import leave_if_stopped, watch_signals


def run() -> None:
    """Run the command line. A signal ends it from the first moment on, while it loads libraries."""
    watch_signals()
    from dino_pipeline.cli import main

    exit_code: str | int | None = 0
    try:
        main(prog_name="dino")
    except SystemExit as error:
        exit_code = error.code
    leave_if_stopped()
    sys.exit(exit_code)


if __name__ == "__main__":
    run()
