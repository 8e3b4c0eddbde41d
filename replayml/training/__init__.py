"""Training: `Application`, `Classifier`, `Regressor`, `Trainer`, checkpoints."""
