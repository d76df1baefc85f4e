"""Whether a step under a plan computes what the original step does, but for rounding."""
