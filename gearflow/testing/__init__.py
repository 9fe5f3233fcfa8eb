"""Means for tests of what talks Gearman: ``peer`` plays the other end of a connection, by a script."""
