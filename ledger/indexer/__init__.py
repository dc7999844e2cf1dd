"""The contracts' events in SQLite: read once, kept right through reorganisations, asked with SQL."""
