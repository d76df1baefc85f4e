"""Deep Q-learning: a walker finds its way over a plain with a wall, by `train_on_batch`."""

import collections

import keras
import numpy as np

SIZE, GOAL, DISCOUNT, LONGEST = 6, (5, 5), 0.9, 40
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
WALL = {(3, column) for column in range(5)}


def moved(place, action):
    """Where the walker is then; walls and the plain's ends hold it up."""
    row, column = (a + b for a, b in zip(place, MOVES[action], strict=True))
    inside = 0 <= row < SIZE and 0 <= column < SIZE and (row, column) not in WALL
    return (row, column) if inside else place


def seen(places):
    """What the network is shown of places: each as two vectors of zeros and a one."""
    rows, columns = np.asarray(places).T
    return np.concatenate([np.eye(SIZE)[rows], np.eye(SIZE)[columns]], axis=1).astype("float32")


def network():
    return keras.Sequential(
        [
            keras.Input((2 * SIZE,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(len(MOVES)),
        ]
    )


keras.utils.set_random_seed(7)
rng = np.random.default_rng(7)
model, target = network(), network()
target.set_weights(model.get_weights())
model.compile(keras.optimizers.Adam(1e-3), keras.losses.Huber())
memory = collections.deque(maxlen=2000)


def learn():
    """One step on what is remembered of 32 moves."""
    chosen = [memory[index] for index in rng.integers(0, len(memory), 32)]
    before, actions, rewards, after, ends = zip(*chosen, strict=True)
    values = np.array(model.predict_on_batch(seen(before)))
    best = target.predict_on_batch(seen(after)).max(axis=1)
    values[np.arange(32), list(actions)] = np.array(rewards) + DISCOUNT * best * ~np.array(ends)
    model.train_on_batch(seen(before), values)


lengths, steps = [], 0
for episode in range(60):
    place, moves = (0, 0), 0
    while moves < LONGEST:
        if rng.random() < max(0.05, 1 - episode / 30):
            action = int(rng.integers(len(MOVES)))
        else:
            action = int(model.predict_on_batch(seen([place])).argmax())
        after = moved(place, action)
        ended = after == GOAL
        memory.append((place, action, float(ended) - 0.05, after, ended))
        place, moves, steps = after, moves + 1, steps + 1
        if len(memory) >= 64 and steps % 2 == 0:
            learn()
        if steps % 100 == 0:
            target.set_weights(model.get_weights())
        if ended:
            break
    lengths.append(moves)
# The moves that the walker needs.
print(*(sum(lengths[at : at + 10]) / 10 for at in range(0, 60, 10)))
