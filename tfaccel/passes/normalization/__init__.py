"""Normalization layers with fused forward and backward computation."""
