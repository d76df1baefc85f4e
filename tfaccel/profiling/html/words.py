"""Numbers as people read them, each with its unit."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def plain_number(value: float) -> str:
    """Four digits, or all of a larger number's.

    >>> plain_number(16.123), plain_number(3846.0), plain_number(0.0001)
    ('16.12', '3,846', '0.0001')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def in_column(value: float) -> str:
    """Two decimals, so that the points of a column stand below each other.

    >>> in_column(1229.887), in_column(4)
    ('1,229.89', '4.00')
    """
    return f"{value:,.2f}"


def share(value: float) -> str:
    """A part of one, in percent.

    >>> share(0.632), share(0.011)
    ('63.2 %', '1.1 %')
    """
    return f"{100 * value:.3g} %"


def duration(seconds: float) -> str:
    """Seconds, or what is nearer to the size: ms, min, h.

    >>> duration(0.0161), duration(13.0), duration(300), duration(9000)
    ('16.1 ms', '13 s', '5 min', '2.5 h')
    """
    size = abs(seconds)
    for limit, factor, unit in ((1, 1e3, "ms"), (120, 1.0, "s"), (7200, 1 / 60, "min")):
        if size < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def si(value: float, unit: str) -> str:
    """A large number with a prefix of its unit.

    >>> si(1.2e11, "FLOP/s"), si(950, "FLOP")
    ('120 GFLOP/s', '950 FLOP')
    """
    index = 0
    while abs(value) >= 999.5 and index < len(_PREFIXES) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.3g} {_PREFIXES[index]}{unit}"
