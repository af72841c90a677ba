"""``python -m infocam_utils`` is the command ``infocam``."""

from infocam_utils.reproduce.cli import main

main()
