"""What a model's layers run as, one by one."""
