"""Options in combination: every pair of values through the real entry points, on Ray and without."""
