"""`contribution-explorer`: who contributed what, what it is worth, and a check of every number that says so."""
