"""Processes: which engine runs them, and how state is gathered and shared."""
