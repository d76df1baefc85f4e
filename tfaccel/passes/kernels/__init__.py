"""Layers' products by the kernels that measuring found fastest."""
