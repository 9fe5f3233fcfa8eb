"""``python -m gearflow_cli`` is ``gearflow``."""

from gearflow_cli.app import main

main()
