"""`tfaccel run --sweep`: which surroundings of a process make a program's steps fastest here."""
