"""Studies: several runs under one budget, one after the other, into one table."""
