"""Attention layers with fused products."""
