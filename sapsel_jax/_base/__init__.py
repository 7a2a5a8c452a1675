"""What every other part stands on: types, checks, sums over examples, precision, files."""
