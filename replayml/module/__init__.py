"""A model before it has weights: `Module`, selectors, `explain`."""
