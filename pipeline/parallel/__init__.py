"""Work spread over processes and machines: maps over items, children that may die, ranks and their collectives."""
