"""`tfaccel run`: a program of the user's own, unchanged, in this process.

What is imported before the program runs (`program`, `imports`, `environment`, `start`) imports
neither TensorFlow nor Keras. The rest is loaded once the program has imported Keras, and fits.
"""
