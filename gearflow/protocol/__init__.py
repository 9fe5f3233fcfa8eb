"""The Gearman protocol and gearflow's extensions of it: bytes <-> packets, without input or output."""
