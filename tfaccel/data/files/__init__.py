"""Folders of WAV files, images and arrays."""
