"""Times, sizes and ratios as text: three digits wherever one of them is shown."""


def number(value: float) -> str:
    """A number with three digits, and all those before the point.

    >>> number(1234.5), number(123.45), number(12.3), number(1.5), number(0.0123)
    ('1,234', '123', '12.3', '1.50', '0.0123')
    """
    if abs(value) >= 1:
        return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"
    return f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    """A time of steps or kernels.

    >>> milliseconds(0.0161)
    '16.1 ms'
    """
    return f"{number(1e3 * seconds)} ms"


def size(size_bytes: float) -> str:
    """Bytes, in the unit that memory is sold in; small ones in its thousandth.

    >>> size(85899345920), size(3 * 2**20)
    ('80.0 GiB', '3.00 MiB')
    """
    if size_bytes < 2**30:
        return f"{number(size_bytes / 2**20)} MiB"
    return f"{number(size_bytes / 2**30)} GiB"


def ratio(value: float) -> str:
    """A speedup.

    >>> ratio(1.3649)
    '1.36x'
    """
    return f"{value:.2f}x"
