"""What is known of single operations: a table, and the rules that it names."""
