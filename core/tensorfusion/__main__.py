"""``python -m tensorfusion``."""

from tensorfusion.cli.main import main

if __name__ == "__main__":
    main()
