"""What is measured on several ranks of one machine: agreement, scaling, exchange, cached features."""
