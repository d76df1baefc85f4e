"""Recurrent layers as one compiled loop."""
