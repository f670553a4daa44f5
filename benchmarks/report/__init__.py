"""Result files in, tables and comparisons out."""
