"""How good a model is: likelihoods beside n-grams, musical statistics, and a search for copies."""
