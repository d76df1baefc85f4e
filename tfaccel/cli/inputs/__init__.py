"""Models and data that commands are given."""
