"""HospitalSim: the embedded generator of hospital traffic, records and attacks."""
