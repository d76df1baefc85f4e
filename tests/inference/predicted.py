"""The plan that these predictions are made under."""

PLAN = ["folded_norm", "frozen_weights"]
