"""How a candidate fared, whether it is a plan, a kernel or a batch size."""

import enum


class Outcome(enum.Enum):
    """How trying one candidate ended."""

    BASELINE = "baseline"  # what the others are held against
    FASTER = "faster"
    SLOWER = "slower"
    UNFAITHFUL = "unfaithful"
    REFUSED = "refused"
    IRRELEVANT = "irrelevant"  # there is nothing that it could serve
    FAILED = "failed"
    STOPPED = "stopped"  # clearly slower from the first
    UNDECIDED = "undecided"  # for want of time
    # Of batch sizes.
    FITS = "fits"
    OUT_OF_MEMORY = "out of memory"  # it was tried, and ran out
    OVER = "over the limit"  # it was tried, and took more than it may
    FORESEEN = "foreseen to be too large"  # it was not tried
