"""What ProfilerCallback measures."""
