"""``python -m taskd.watchdog``: only a worker starts it."""

from taskd.watchdog.process import main

if __name__ == "__main__":
    main()
