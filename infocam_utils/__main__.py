"""``python -m infocam_utils`` is the command ``infocam``."""

from infocam_utils.cli import main

main()
