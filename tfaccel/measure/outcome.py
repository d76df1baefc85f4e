"""How the trial of a candidate (a plan, a kernel, a batch size) ended."""

import enum


class Outcome(enum.Enum):
    """How trying one candidate ended."""

    BASELINE = "baseline"  # that the others are compared with
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
