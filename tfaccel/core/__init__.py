"""What every part speaks of: plans and passes, the workload, replicas, tracing."""
