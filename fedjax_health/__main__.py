"""``python -m fedjax_health`` and the command ``fedjax-health``."""

from fedjax_health.cli.main import main

if __name__ == "__main__":
    main()
