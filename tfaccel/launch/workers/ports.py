"""Ports for the workers of this machine."""

import random
import socket

from tfaccel.launch.workers.errors import LaunchError

# Below 32768, where Linux's short-lived ports start: no outgoing connection takes one between
# this check and TensorFlow's use of it, some seconds later.
# https://docs.kernel.org/networking/ip-sysctl.html (ip_local_port_range)
PORTS = range(12000, 32000)
_ATTEMPTS = 1000


def free_ports(count: int, draws: random.Random | None = None) -> list[int]:
    """Different ports that nothing listens on, in no order.

    Args:
        count: how many.
        draws: where numbers come from; None for the system's.

    Raises:
        LaunchError: there are not so many.
    """
    draws = draws or random.SystemRandom()
    held: list[socket.socket] = []  # till all are found, so that they differ
    try:
        for _ in range(_ATTEMPTS):
            if len(held) == count:
                break
            one = socket.socket()
            try:
                one.bind(("", draws.choice(PORTS)))
                held.append(one)
            except OSError:  # taken
                one.close()
        else:
            raise LaunchError(f"{count} free ports from {PORTS.start} on were not found")
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
