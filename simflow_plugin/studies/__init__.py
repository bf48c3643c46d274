"""Studies: several runs with equal budgets, and their table."""
