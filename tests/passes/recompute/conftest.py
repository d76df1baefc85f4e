"""A count of what is recomputed."""

import pytest

from tfaccel.passes.recompute import _sites as sites


@pytest.fixture
def recomputed(monkeypatch):
    """Counts the parts that are recomputed; a part that is left as it is does not count."""
    counted = []
    own = sites.with_gradient

    def with_gradient(*args):
        counted.append(args)
        return own(*args)

    monkeypatch.setattr(sites, "with_gradient", with_gradient)
    return counted
