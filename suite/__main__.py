from suite.cli import main
from suite.signals import stop_once

if __name__ == "__main__":
    stop_once()
    raise SystemExit(main())
