"""Reading TensorFlow's op traces."""
