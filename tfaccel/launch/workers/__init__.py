"""`tfaccel run --workers N`: a program as several workers that train together.

The launcher imports neither TensorFlow nor Keras; `backup` is for the workers.
"""
