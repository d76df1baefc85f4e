"""`tfaccel bench --workers`: how a training step scales, measured here and predicted elsewhere."""
