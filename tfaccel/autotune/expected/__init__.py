"""What is expected of plans before they are tried, and which is worth a trial."""
