"""The field's benchmarks, one file each: from a model (or published logs) to the numbers that papers print."""
