"""Runs the watchdog's process: only a worker starts it."""

from taskd.hardening import forbid_inspection


def main() -> None:
    """Hide this process from others of its user first. Then read the password and watch over the worker."""
    forbid_inspection()
    from taskd.watchdog.process import main as watch

    watch()


if __name__ == "__main__":
    main()
