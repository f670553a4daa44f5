"""What training costs: steps, features of a whole corpus, drawing faces."""
