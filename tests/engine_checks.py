"""What holds for every engine of predictions; their tests call it."""

import keras
from inference_models import COUNT, accelerate, assert_alike, image_model, numbers

import tfaccel

layers = keras.layers


def check_kind_of_model(case, name, refused):
    """An engine serves a model of the catalogue, or says what is in the way.

    Args:
        case: of the catalogue.
        name: the engine's.
        refused: by the names of cases, the kind of refusal; None where the conversion fails.
    """
    model, x = case.make()
    fast = accelerate(model, x, [name])
    trial = fast.report.trials[1]
    if case.name in refused:
        assert trial.refusal is refused[case.name] and fast.plan.is_baseline
        return
    assert fast.plan.names == (name,), trial.reason
    expected = model.predict(x, batch_size=5, verbose=0)
    assert_alike(expected, fast.predict(x, batch_size=5, verbose=0), 1e-4, 1e-4)


def check_what_is_loaded(engine, folder, tolerance):
    """A saved engine predicts the same in its sample's size and in another."""
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, [engine])
    fast.save(folder)
    loaded = tfaccel.load(folder)
    assert loaded.plan == tfaccel.Plan((engine,))
    for size in (COUNT, 5):
        expected = fast.predict(x, batch_size=size, verbose=0)
        found = loaded.predict(x, batch_size=size, verbose=0)
        assert_alike(expected, found, tolerance, tolerance)


def check_inputs_are_told_apart(name, folder):
    """Of the same shape, and in another order than that of their names."""
    z, a = keras.Input((4,), name="z"), keras.Input((4,), name="a")
    outputs = [layers.Dense(2, name="y")(z), layers.Dense(2, name="b")(layers.subtract([z, a]))]
    model, x = keras.Model([z, a], outputs), [numbers(4), numbers(4, seed=1)]
    fast = accelerate(model, x, [name])
    assert fast.plan.names == (name,), fast.report.reasons()
    expected = model.predict(x, verbose=0)
    assert_alike(expected, fast.predict(x, verbose=0), 1e-4, 1e-4)
    fast.save(folder)
    assert_alike(expected, tfaccel.load(folder).predict(x, verbose=0), 1e-4, 1e-4)
