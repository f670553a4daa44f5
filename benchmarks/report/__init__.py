"""Result files in, tables, plots and comparisons out."""
