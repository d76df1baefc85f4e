"""What keeps workers from being started."""


class LaunchError(Exception):
    """Workers can't be started as asked; the message is the one line that says why."""
