"""One accelerated training, whoever makes its steps: phases, races, the NaN guard."""
