"""Shared machinery of the benchmarks: options, results, statistics, tables, figures, and the studies they run."""
