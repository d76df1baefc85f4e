"""One accelerated `fit`: who runs which step, the NaN guard, validation, progress."""
