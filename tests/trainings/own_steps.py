"""Models with a step or a loss of their own."""

import keras
import tensorflow as tf
from keras import layers, ops

from trainings.common import classes, net, numbers, pairs, training


class AlternateGAN(keras.Model):
    """A discriminator that learns twice for each step of the generator."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = net(8, 3, 4), net(8, 4, 1)
        self.seeds = keras.random.SeedGenerator(4)
        self.d_metric = keras.metrics.Mean(name="d_loss")
        self.g_metric = keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    @property
    def metrics(self):
        return [self.d_metric, self.g_metric]

    def train_step(self, real):
        count = tf.shape(real)[0]
        labels = tf.concat([tf.ones((count, 1)), tf.zeros((count, 1))], axis=0)
        for _ in range(2):
            fake = self.generator(keras.random.normal((count, 3), seed=self.seeds))
            with tf.GradientTape() as tape:
                d_loss = self.loss_fn(labels, self.discriminator(tf.concat([real, fake], axis=0)))
            weights = self.discriminator.trainable_weights
            gradients = tape.gradient(d_loss, weights)
            self.d_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        noise = keras.random.normal((count, 3), seed=self.seeds)
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(tf.ones((count, 1)), judged)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        self.d_metric.update_state(d_loss)
        self.g_metric.update_state(g_loss)
        return {"d_loss": self.d_metric.result(), "g_loss": self.g_metric.result()}


@training(draws=True, rtol=5e-3)
def alternate_gan(folder):
    model = AlternateGAN()
    model.compile(
        keras.optimizers.Adam(1e-3, beta_1=0.5),
        keras.optimizers.Adam(2e-3, beta_1=0.5),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    data = tf.data.Dataset.from_tensor_slices(numbers(96, 4)).batch(8)
    return [model], [model.fit(data, epochs=3, verbose=0)]


class Physics(keras.Model):
    """u'' = -u with u(0) = 0 and u'(0) = 1."""

    def __init__(self):
        super().__init__()
        units = [layers.Dense(12, activation=name) for name in ("tanh", "gelu")]
        self.net = keras.Sequential([*units, layers.LayerNormalization(), layers.Dense(1)])
        self.total = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.total]

    def call(self, t):
        return self.net(t)

    def derivatives(self, t):
        with tf.GradientTape() as outer:
            outer.watch(t)
            with tf.GradientTape() as inner:
                inner.watch(t)
                u = self(t, training=True)
            first = inner.gradient(u, t)
        return u, first, outer.gradient(first, t)

    def train_step(self, t):
        with tf.GradientTape() as tape:
            u, _, second = self.derivatives(t)
            start, slope, _ = self.derivatives(tf.zeros((1, 1)))
            inside = tf.reduce_mean(tf.square(second + u))
            loss = inside + tf.reduce_sum(tf.square(start)) + tf.reduce_sum(tf.square(slope - 1))
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.total.update_state(loss)
        return {"loss": self.total.result()}


@training(rtol=5e-3)
def physics_informed(folder):
    model = Physics()
    model.compile(keras.optimizers.Adam(1e-3))
    return [model], [model.fit(numbers(96, 1), batch_size=16, epochs=3, verbose=0)]


class Diffusion(keras.Model):
    """Predicts noise; a second network follows the first by a moving average."""

    def __init__(self):
        super().__init__()
        self.normalizer = layers.Normalization()
        self.network, self.ema_network = net(12, 5, 4), net(12, 5, 4)
        self.ema_network.set_weights(self.network.get_weights())
        self.seeds = keras.random.SeedGenerator(6)

    def compile(self, **kwargs):
        super().compile(**kwargs)
        self.noise_tracker = keras.metrics.Mean(name="n_loss")

    @property
    def metrics(self):
        return [self.noise_tracker]

    def denoised(self, x, training):
        x = self.normalizer(x)
        count = ops.shape(x)[0]
        noise = keras.random.normal((count, 4), seed=self.seeds)
        rate = keras.random.uniform((count, 1), seed=self.seeds)
        mixed = ops.sqrt(1 - rate) * x + ops.sqrt(rate) * noise
        network = self.network if training else self.ema_network
        return noise, network(ops.concatenate([mixed, rate], axis=1), training=training)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            noise, predicted = self.denoised(x, training=True)
            loss = self.loss(noise, predicted)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        for weight, average in zip(self.network.weights, self.ema_network.weights, strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        self.noise_tracker.update_state(loss)
        return {m.name: m.result() for m in self.metrics}

    def test_step(self, x):
        noise, predicted = self.denoised(x, training=False)
        self.noise_tracker.update_state(self.loss(noise, predicted))
        return {m.name: m.result() for m in self.metrics}


@training(draws=True)
def diffusion_with_ema(folder):
    x, model = 2 + numbers(96, 4), Diffusion()
    model.normalizer.adapt(x)
    model.compile(optimizer=keras.optimizers.AdamW(1e-3), loss=keras.losses.mean_absolute_error)
    data = tf.data.Dataset.from_tensor_slices(x).batch(8)
    return [model], [model.fit(data, epochs=3, validation_data=data.take(3), verbose=0)]


class Distiller(keras.Model):
    """A student that learns from labels and from a teacher, after the guide of keras.io."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, optimizer, metrics, student_loss, distillation_loss):
        super().compile(optimizer=optimizer, metrics=metrics)
        self.student_loss, self.distillation_loss = student_loss, distillation_loss

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, allow_empty=False):
        taught = self.teacher(x, training=False)
        soft = [ops.softmax(logits / 3.0, axis=1) for logits in (taught, y_pred)]
        return 0.3 * self.student_loss(y, y_pred) + 6.3 * self.distillation_loss(*soft)

    def call(self, x):
        return self.student(x)


@training()
def distillation(folder):
    x, y = numbers(96, 6), classes(96, 3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher, student = net(16, 6, 3), net(4, 6, 3)
    teacher.compile("adam", loss)
    first = teacher.fit(x, y, batch_size=16, epochs=2, verbose=0)
    teacher.trainable = False
    model = Distiller(student, teacher)
    model.compile("adam", ["accuracy"], loss, keras.losses.KLDivergence())
    second = model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    return [teacher, model], [first, second]


class Queue(keras.Model):
    """Contrasts two views of a sample with earlier samples, which it keeps in a queue."""

    def __init__(self):
        super().__init__()
        self.encoder = net(12, 4, 6)
        self.noise = layers.GaussianNoise(0.2, seed=8)
        start = keras.initializers.RandomNormal(seed=9)
        self.queue = self.add_weight(
            shape=(32, 6), initializer=start, trainable=False, name="queue"
        )
        self.seen = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="seen"
        )

    def call(self, x, training=False):
        return ops.normalize(self.encoder(self.noise(x, training=training)), axis=1)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            one, other = self(x, training=True), self(x, training=True)
            alike = ops.sum(one * other, axis=1, keepdims=True)
            logits = ops.concatenate([alike, ops.matmul(one, ops.transpose(self.queue))], axis=1)
            labels = ops.zeros((ops.shape(x)[0],), "int32")
            loss = ops.mean(
                ops.sparse_categorical_crossentropy(labels, logits / 0.2, from_logits=True)
            )
        weights = self.encoder.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.queue.assign(ops.concatenate([self.queue[ops.shape(x)[0] :], other]))
        self.seen.assign_add(ops.shape(x)[0])
        return {"loss": loss, "seen": self.seen}


@training(draws=True, rtol=5e-3)
def contrastive_queue(folder):
    model = Queue()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return [model], [model.fit(numbers(96, 4), batch_size=8, epochs=3, verbose=0)]


class Graph(keras.Model):
    """Messages along edges, summed at nodes, by `gather` and `segment_sum`."""

    def __init__(self):
        super().__init__()
        self.message = layers.Dense(8, activation="relu")
        self.update, self.out = layers.Dense(8, activation="silu"), layers.Dense(1)

    def call(self, inputs):
        nodes, senders, receivers = inputs["nodes"], inputs["senders"], inputs["receivers"]
        messages = self.message(ops.take(nodes, senders, axis=0))
        count = tf.shape(nodes)[0]
        summed = tf.math.unsorted_segment_sum(messages, receivers, count)
        return self.out(self.update(ops.concatenate([nodes, summed], axis=1)))


@training()
def graph_network(folder):
    """The graphs differ in size."""

    def graphs():
        for seed in range(16):
            count = 9 + seed % 4
            ends = classes(2 * count, count, 2, seed=seed).astype("int32")
            nodes = numbers(count, 4, seed=seed)
            graph = {"nodes": nodes, "senders": ends[:, 0], "receivers": ends[:, 1]}
            yield graph, nodes.sum(axis=1, keepdims=True)

    ints = tf.TensorSpec((None,), tf.int32)
    spec = {"nodes": tf.TensorSpec((None, 4)), "senders": ints, "receivers": ints}
    data = tf.data.Dataset.from_generator(graphs, output_signature=(spec, tf.TensorSpec((None, 1))))
    model = Graph()
    model.compile("adam", "mse", metrics=["mae"])
    return [model], [model.fit(data, epochs=3, verbose=0)]


@training()
def detection_with_dictionaries(folder):
    """Boxes and classes by name, with weights for what is no object."""
    x = inputs = keras.Input((16, 16, 1))
    x = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    boxes = layers.Reshape((16, 4), name="boxes")(layers.Conv2D(4, 1)(x))
    kinds = layers.Reshape((16, 3), name="kinds")(layers.Conv2D(3, 1)(x))
    model = keras.Model(inputs, {"boxes": boxes, "kinds": kinds})
    losses = {
        "boxes": keras.losses.Huber(),
        "kinds": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    model.compile("adam", losses, loss_weights={"boxes": 2.0, "kinds": 1.0})
    y = {"boxes": numbers(48, 16, 4), "kinds": classes(48, 3, 16)}
    weights = {"boxes": (y["kinds"] > 0).astype("float32"), "kinds": y["kinds"] + 0.5}
    data = tf.data.Dataset.from_tensor_slices((numbers(48, 16, 16, 1), y, weights)).batch(8)
    return [model], [model.fit(data, epochs=2, validation_data=data.take(2), verbose=0)]


class Activity(layers.Layer):
    """Adds a loss and a metric of its own."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="activity")

    def call(self, x):
        self.add_loss(0.01 * ops.mean(ops.square(x)))
        self.mean.update_state(ops.mean(x))
        return x


@training(quick=True)
def added_losses_and_constraints(folder):
    x = inputs = keras.Input((4,))
    x = layers.Dense(8, activation="relu", activity_regularizer=keras.regularizers.L1(1e-3))(x)
    x = layers.SpectralNormalization(layers.Dense(8, kernel_regularizer="l2"))(Activity()(x))
    outputs = layers.Dense(1, kernel_constraint=keras.constraints.MaxNorm(0.7))(x)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"])
    return [model], [model.fit(*pairs(), batch_size=8, epochs=2, validation_split=0.2, verbose=0)]
