"""The decode step as compiled code, for the CPU."""
