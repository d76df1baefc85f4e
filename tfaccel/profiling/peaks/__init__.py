"""What the device can do at most."""
