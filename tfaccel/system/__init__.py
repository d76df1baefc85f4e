"""The machine: devices, memory, containers' limits, the folder of caches."""
