"""What won, as a folder that runs with and without tfaccel: save.py and load.py."""
