"""Every private API of Keras and TensorFlow that is used, and the patching of attributes."""
