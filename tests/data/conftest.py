"""Arrays to make datasets of."""

import numpy as np
import pytest


@pytest.fixture
def arrays(rng):
    return {"a": rng.normal(size=(23, 3)), "b": rng.normal(size=23)}, np.arange(23), np.ones(23)
