"""Three job servers on one PostgreSQL lose a server and the primary under load, and no job."""
