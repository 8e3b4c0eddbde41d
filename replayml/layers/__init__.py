"""Leaves and containers: `External`, `Layer`, `LayerList`, `Sequential`, `Parallel`, optimizers."""
