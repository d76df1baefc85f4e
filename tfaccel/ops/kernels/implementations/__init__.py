"""The kernels, a file each; `_registry` lists them."""
