"""What a program is: types, the algebra of time, ops, graphs and their dumps."""
