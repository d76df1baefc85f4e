"""Steps under a plan: building, several in a call, snapshots, replay, agreement of workers."""
