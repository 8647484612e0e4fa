"""The time of each stage beside floors, plain algorithms and other libraries, answers checked."""
