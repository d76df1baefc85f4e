"""Layer by layer: which passes serve it, and why the others do not."""
