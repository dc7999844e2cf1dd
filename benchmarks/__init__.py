"""Speed and quality, measured beside a baseline. Not installed; run from the project's root."""
