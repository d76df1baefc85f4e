"""One accelerated `fit`: its place in Keras, its epochs and its length."""
