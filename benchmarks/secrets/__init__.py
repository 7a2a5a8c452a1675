"""Secrets in text: passwords, card numbers and birth dates that a language model has learned."""
