"""One worker of several: trains once under each pass, and writes what came of it.

every_pass.py OUT_DIR
"""

import json
import os
import pathlib
import sys

import keras
import models

import tfaccel
from tfaccel.passes import MixedPrecision, StepBatching
from tfaccel.steps.worker_agreement import agreement_of

# Those that serve several replicas (docs/distributed.md).
PLANS = {
    "none": None,
    "shares": None,
    "fused_norm": ["fused_norm"],
    "fused_optimizer": ["fused_optimizer"],
    "full_precision": ["full_precision"],
    "exact_reductions": ["exact_reductions"],
    "recompute": ["recompute"],
    "kernels": ["kernels"],
    "step_batching": [StepBatching(4, allow_batch_hooks=True)],
    "mixed_precision": ["mixed_precision"],
    "float16": [MixedPrecision("float16")],
}
# Statistics of each replica's share: `fused_norm` does not serve those of the whole batch.
BY_SHARES = ("shares", "fused_norm")
# Batches that 2, 3 and 4 workers share evenly, and a last one that is as large.
BATCH, SAMPLES = 12, 72


def trained(name, steps_per_execution=1):
    """Two epochs of six steps."""
    plan = PLANS[name]
    model = models.cnn(synchronized=name not in BY_SHARES)
    model.steps_per_execution = steps_per_execution
    accel = [] if plan is None else [tfaccel.AccelCallback(plan, verbose=0, cache_dir=False)]
    x, y = models.images(SAMPLES)
    history = model.fit(
        x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=accel
    ).history
    return {
        "plan": "none" if plan is None else str(accel[0].plan),
        "history": history,
        "weights": [w.astype("float64").tolist() for w in model.get_weights()],
    }


def handed_over(strategy):
    """What workers are told of a value that can't be handed over, and of the next one."""
    agreement = agreement_of(strategy.strategy)
    try:
        agreement.same(lambda: None)
        failed = False
    except Exception:
        failed = True
    return {"failed": failed, "next": agreement.same(int(os.environ["TEST_WORKER"]))}


def main():
    out, task = pathlib.Path(sys.argv[1]), os.environ["TEST_WORKER"]
    strategy = tfaccel.AccelStrategy()
    found = {"agreement": handed_over(strategy)}
    with strategy.scope():
        found |= {name: trained(name) for name in PLANS}
        found["steps_per_execution"] = trained("none", steps_per_execution=4)
    (out / f"result-passes-{task}.json").write_text(json.dumps(found, default=float))
    strategy.reduce("SUM", keras.ops.ones(()), axis=None)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
