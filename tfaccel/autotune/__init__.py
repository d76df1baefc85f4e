"""Choosing a plan: search, trials, what is faithful, the cache of plans, `tfaccel.tune`."""
