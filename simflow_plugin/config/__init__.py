"""Configuration: schema, checks, and YAML with line numbers."""
