"""The concepts of all parts: plans and passes, the workload, replicas, tracing."""
