"""``python -m dino_pipeline`` is the ``dino`` command."""

from dino_pipeline.stopping import leave_if_stopped, watch_signals


def run() -> None:
    """Run the command line. A signal ends it from the first moment on, while it loads libraries."""
    watch_signals()
    from dino_pipeline.cli import main

    try:
        main(prog_name="dino")
    finally:
        leave_if_stopped()


if __name__ == "__main__":
    run()
