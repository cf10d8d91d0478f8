"""The LightningModule, its callbacks, export, and the fit."""
