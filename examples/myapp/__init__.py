"""The smallest application: what README and the tutorial start from."""
